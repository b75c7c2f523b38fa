"""The measuring itself: hide a key from a layer's attention, exactly, while the model's own forward runs.

In: a model and what to hide. Out: tensors of distances, effects and self-checks, for each step. Attention in closed form,
differences that ride through the model's own linear maps, replay through later layers, and proof by really masking.
It must not know prompts, files or text; it prints nothing. `choices` works without torch.
"""
