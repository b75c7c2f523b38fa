"""mask-impact: which token does a model use, at which layer, to produce each token of its answer.

    import mask_impact
    model = mask_impact.load("demo")
    result = mask_impact.analyze(model, "What is 2+2?", num_tokens=3)
    result.to_frame(); result.save("output/two_plus_two")

The names below are loaded when they are first used, so that reading help or a stored result needs no torch.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "load": "loading",
    "wrap": "loading",
    "LoadedModel": "loading",
    "analyze": "analysis",
    "analyze_many": "batching",
    "knockout": "knockouts",
    "without": "whatif",
    "load_result": "store",
    "Result": "records",
    "StepRecord": "records",
    "TokenTable": "records",
    "ImageRecord": "records",
    "MaskImpactError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'mask_impact' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mask_impact.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
