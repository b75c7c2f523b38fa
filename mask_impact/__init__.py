"""mask-impact: which token does a model use, at which layer, to produce each token of its answer.

    import mask_impact
    result = mask_impact.analyze("demo", "What is 2+2?", num_tokens=3)
    print(result); result.to_frame(); result.save("output/two_plus_two")

The names below are loaded when they are first used, so that reading help or a stored result needs no torch.
"""

import importlib

__version__ = "0.2.0"

_HOMES = {
    "load": "models.loading",
    "wrap": "models.loading",
    "LoadedModel": "models.loading",
    "analyze": "api.functions",
    "analyze_many": "api.functions",
    "explain": "api.functions",
    "knockout": "api.functions",
    "without": "api.functions",
    "pixels": "api.looking",
    "deepstack": "api.looking",
    "tower": "api.looking",
    "load_result": "api.results",
    "Result": "api.results",
    "Explanation": "api.results",
    "Knockouts": "api.results",
    "WhatIf": "api.results",
    "PatchEffects": "api.results",
    "DeepstackEffects": "api.results",
    "TowerEffects": "api.results",
    "StepRecord": "results.records",
    "TokenTable": "results.records",
    "ImageRecord": "results.records",
    "MaskImpactError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'mask_impact' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mask_impact.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
