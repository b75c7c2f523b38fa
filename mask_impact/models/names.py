"""Models, dtypes and device plans by name, and which model is used where none is given. Light."""

DEFAULT_MODELS = {"vl": "Qwen/Qwen3-VL-4B-Instruct", "text": "Qwen/Qwen3-1.7B"}
KINDS = tuple(DEFAULT_MODELS)
DEMO = "demo"
SMOLLM2 = "smollm2"
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
