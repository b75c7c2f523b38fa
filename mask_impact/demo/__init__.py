"""The bundled demo checkpoints: where they lie. `tasks` beside this file knows what they were trained to answer.

Both are small, really trained models of the architectures that the two scripts default to, with the same layer counts:
`vl` is a Qwen3VLForConditionalGeneration with 36 decoder layers, `text` a Qwen3ForCausalLM with 28. They were made by
`tools/train_demo.py` and are local directories that transformers loads like any other checkpoint.
"""

from pathlib import Path

VL_PATH = Path(__file__).parent / "vl"
TEXT_PATH = Path(__file__).parent / "text"
