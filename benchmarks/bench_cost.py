"""What estimating and measuring what an answer used costs, in plain forward passes of the same prompt, and in memory.

    python benchmarks/bench_cost.py                       random weights of the Qwen3-VL-4B shape, bf16, six of its layers
    python benchmarks/bench_cost.py --layers 36 --tokens 64 256      the real depth: half an hour

The parts: one backward pass by each rule (a kept forward pass with them), and hiding single positions from all queries in all
layers, by the replay and by the straightforward way, which runs a batch of whole forward passes with masks. Positions are spread
over the prompt, so half of it has to run again on average. Then what a user calls: `explain` with its default budget, and
`analyze` with an answer, which has the local maps, too. The prompt is random words in sentences of twelve. All are timed in
turns, and the medians of their ratios are shown.
"""

import argparse
import os
import statistics
from collections.abc import Callable

import torch
from bench_engine import N_ORDINARY_TOKENS, build_model, make_inputs, peak_mib, seconds
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mask_impact.api.functions import analyze, explain
from mask_impact.engine.backward import estimate, estimate_last, estimates
from mask_impact.engine.kept import keep
from mask_impact.engine.plans import SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.taps import tapped
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import each_window_and_group
from mask_impact.models.loading import LoadedModel, wrap

N_HIDDEN = 8  # positions that are hidden, each by itself
SENTENCE = 12  # words, the full stop among them
FULL_STOP = 0


def with_words(model) -> LoadedModel:
    """The model with a tokenizer that has a word for every id."""
    words = {f" w{number}": number for number in range(N_ORDINARY_TOKENS)}
    del words[f" w{FULL_STOP}"]
    words["."] = FULL_STOP
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=" w1"))
    return wrap(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), name="random weights")


def in_sentences(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs with full stops in them."""
    ids = inputs["input_ids"].clone()
    ids[0, SENTENCE - 1 :: SENTENCE] = FULL_STOP
    return inputs | {"input_ids": ids}


def positions(n_tokens: int) -> list[int]:
    """Spread evenly over the prompt."""
    return [round((number + 0.5) * n_tokens / N_HIDDEN) for number in range(N_HIDDEN)]


@torch.no_grad()
def batched(model, inputs: dict[str, torch.Tensor], hidden: list[int]) -> torch.Tensor:
    """Logits [n, vocabulary] of whole forward passes, one sequence for each hidden position."""
    n_tokens = inputs["input_ids"].shape[1]
    visible = torch.ones(len(hidden), 1, n_tokens, n_tokens, dtype=torch.bool, device=model.device).tril()
    for number, position in enumerate(hidden):
        visible[number, 0, :, position] = False
    visible[:, :, 0, 0] = True  # a query that sees nothing would have no softmax

    def attend(own, module, query, key, value, mask, *args, **kwargs):
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=kwargs["scaling"], enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None

    repeated = {name: value.expand(len(hidden), -1) for name, value in inputs.items()}
    with tapped(decoder_of(model), attend):
        return model(**repeated, use_cache=False, logits_to_keep=1).logits[:, -1]


def parts_of(loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    model = loaded.model
    n_tokens = inputs["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[0]
    target = Target(n_tokens - 1, int(logits[-1].argmax()))
    hidden = positions(n_tokens)

    @torch.no_grad()
    def forward() -> None:
        model(**inputs, use_cache=False, logits_to_keep=1)

    def measured(directly: bool) -> None:
        with torch.no_grad(), RidingEngine(model, plans=[SequencePlan(n_steps=0)], keep_states="all") as engine:
            own = model(**inputs, logits_to_keep=1).logits[0]
            variants = each_window_and_group(
                [[one] for one in hidden], n_tokens, len(engine.decoder.layers), "all", "all"
            )
            measure_targets(engine, variants, [target], own, directly)

    def of_last() -> None:
        with torch.no_grad(), RidingEngine(model, plans=[SequencePlan(n_steps=0)], keep_states="last") as engine:
            model(**inputs, logits_to_keep=1)
            estimate_last(engine, target)

    return {
        "forward": forward,
        "forward and gradient, last query": of_last,
        "kept forward and gradient": lambda: estimate(keep(model, inputs), [target], "gradient"),
        "kept forward and both rules": lambda: estimates(keep(model, inputs), [target]),
        f"states and {N_HIDDEN} hidden, replay": lambda: measured(False),
        f"states and {N_HIDDEN} hidden, directly": lambda: measured(True),
        f"{N_HIDDEN} hidden, batched masks": lambda: batched(model, inputs, hidden),
        "explain": lambda: explain(loaded, inputs, num_tokens=1),
        "run, with local maps": lambda: analyze(loaded, inputs, answer=True),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024], help="prompt lengths")
    parser.add_argument("--layers", type=int, default=6, help="decoder layers (36: the real depth; default: 6)")
    parser.add_argument("--repeats", type=int, default=5, help="each figure is the median of this many runs")
    parser.add_argument("--parts", help="only those with this in their names (and the forward pass)")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = with_words(build_model(args.layers, device))
    print(f"{args.layers} layers of the 4B shape, bf16, {device}, {os.cpu_count()} cores, torch {torch.__version__}")
    for n_tokens in args.tokens:
        parts = parts_of(loaded, in_sentences(make_inputs(n_tokens, device)))
        parts = {name: run for name, run in parts.items() if name == "forward" or (args.parts or "") in name}
        taken: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(args.repeats):
            for name, run in parts.items():
                taken[name].append(seconds(run, device))
        print(f"{n_tokens} tokens: a forward pass takes {statistics.median(taken['forward']):.2f} s")
        for name, run in parts.items():
            ratios = [one / plain for one, plain in zip(taken[name], taken["forward"], strict=True)]
            print(f"  {name:34}{statistics.median(ratios):8.1f} forwards{peak_mib(run, device):9.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
