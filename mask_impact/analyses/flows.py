"""Where the ends of a flow are in a prompt."""

from mask_impact.errors import InputError, UsageError
from mask_impact.prompts.groups import Layout
from mask_impact.results.flows import Flow, FlowPositions


def placed(flow: Flow, layout: Layout, n_heads: int) -> FlowPositions:
    """The positions of a flow's source and target (None for `last`); layout: of the prompt; n_heads: of a layer.

    InputError for an end that is not there, and where nothing can flow, UsageError for a head that is not there.
    """
    try:
        source = layout.resolve(flow.source)
        target = None if flow.target.strip() == "last" else layout.resolve(flow.target)
    except InputError as error:
        raise InputError(f"flow '{flow.name}': {error}") from None
    if wrong := [head for head in flow.heads or () if head not in range(n_heads)]:
        raise UsageError(f"flow '{flow.name}': head {wrong[0]} is not there: the model has heads 0 to {n_heads - 1}")
    if target is not None and source[0] > target[-1]:
        raise InputError(
            f"flow '{flow.name}' is empty by causality: every token of its source stands behind every token of its target, "
            "and a token sees only what is before it; turn it round"
        )
    return FlowPositions(flow, source, target)
