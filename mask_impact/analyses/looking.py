"""One answer about images, and the model run again with other features of these images: what that does to the answer.

The answer is the model's own. The prompt and what was produced then run as one sequence in the way that all variants do
(`engine.features`), which has to give the answer's own logits; against this run the variants are held. What is changed, and
why, say `pixels` and `deepstack`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from mask_impact.analyses.explain import extended
from mask_impact.analyses.generation import SMALLER, on_input_device
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import Prepared, describe_run
from mask_impact.analyses.targets import resolve
from mask_impact.analyses.without import generate
from mask_impact.engine.effects import TOLERANCE, apart
from mask_impact.engine.feature_sets import Noted
from mask_impact.engine.features import FeaturePass, Features, in_batches
from mask_impact.engine.ownership import refuse_hooks
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.targets import Target, TargetEffects, effects_of_logits
from mask_impact.errors import (
    DeviceError,
    ExactnessError,
    InputError,
    UnsupportedArchitecture,
    UsageError,
    is_out_of_memory,
)
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.encoding import token_texts
from mask_impact.prompts.patches import PIXELS
from mask_impact.results.tokens import TokenTable

FAMILIES = ("qwen3_vl", "qwen3_vl_moe")


def check_images(reader: Reader, prepared: Prepared, videos: bool = False) -> None:
    """Refuses, by the configuration and the prompt alone, a model whose eye is not known and a prompt without an image. videos:
    whether a video is taken, too."""
    model_type = reader.config.model_type
    if model_type not in FAMILIES:
        raise UnsupportedArchitecture(
            f"the features of images are changed in models of {' and '.join(FAMILIES)} only, and '{reader.name}' is {model_type}"
        )
    if not prepared.encoded.images:
        raise InputError("the prompt has no image; give one")
    if not videos and any(image.moment is not None for image in prepared.encoded.images):
        raise InputError(
            "the prompt has a video, and only the features of images are changed so far; give its frames as images"
        )
    if "mm_token_type_ids" not in prepared.encoded.inputs:
        raise InputError("ready model inputs with images need mm_token_type_ids, as the model's processor gives them")


def check_rows(rows: int, forward: int, max_cost: int, hint: str) -> None:
    """UsageError where more rows would go through layers than are allowed. forward: those of one forward pass of the prompt."""
    if rows > max_cost:
        raise UsageError(
            f"this takes {rows:,} rows through layers, as many as {rows / forward:,.0f} forward passes of this prompt, and "
            f"{max_cost:,} are allowed: {hint}, or allow it with `max_cost` {rows}"
        )


class Change(NamedTuple):
    """What one variant does to a target: see results.looked.LookedTarget."""

    logprob: float
    kl: float
    top1: int
    differs: bool


def changes_of(effects: TargetEffects) -> list[Change]:
    """Of each variant."""
    columns = zip(effects.logprob_change, effects.kl_divergence, effects.top1, effects.differs, strict=True)
    return [Change(float(change), float(kl), int(top1), bool(differs >= 0)) for change, kl, top1, differs in columns]


@dataclass(frozen=True)
class Asked:
    """A target. steps: its produced tokens; targets: the same with their rows; text: together; probability: of all in a row."""

    steps: tuple[int, ...]
    targets: tuple[Target, ...]
    text: str
    probability: float


class Looking:
    """An answer, ready to be held against others. produced: its ids; again: the sequence that runs again; own: the features that
    the model had; asked: the targets; floor: by how much, in nats, log-probabilities of this run differ from the answer's own;
    rows: through layers, so far. noted: what `generate()` leaves, where it is to be noted; then the features are its own, and
    whoever looks runs the sequence, and says so by `against`."""

    def __init__(self, loaded: LoadedModel, prepared: Prepared, observer: Observer, noted: Noted | None = None) -> None:
        self.loaded, self.prepared, self.observer = loaded, prepared, observer
        refuse_hooks(decoder_of(loaded.model))
        logits: list[torch.Tensor] = []
        inputs, settings = prepared.encoded.inputs, prepared.settings
        n_layers = loaded.config.get_text_config().num_hidden_layers
        observer.begin(prepared.encoded.n_tokens, n_layers, settings.num_tokens)
        held = {} if noted is None else {"past_key_values": noted.keys}
        self.produced = generate(loaded, inputs | held, (), (), settings.num_tokens, lambda one: logits.append(one[0]))
        self.texts, kinds = token_texts(loaded.tokenizer, self.produced)
        self.tokens: TokenTable = prepared.encoded.tokens.extended(self.produced, self.texts, kinds)
        moved = on_input_device(loaded.model, inputs)
        for name in PIXELS:  # of which means are formed, unrounded
            if name in inputs:
                moved[name] = inputs[name].to(moved[name].device)
        self.inputs = extended(moved, self.produced[:-1])
        self.again = FeaturePass(loaded.model, self.inputs, len(self.produced))
        self._answered, self._resolved = torch.stack(logits), self._steps_of(kinds)
        self.own = self.again.own() if noted is None else noted.own()
        self.rows = 0
        if noted is None:
            self.against(self.again.logits(self.own)[0], self.again.forward_rows())

    def against(self, logits: torch.Tensor, rows: int) -> None:
        """Variants are held against this run of the sequence with its own features, which took so many rows. logits: [T,
        vocabulary], of the first T produced tokens, all that are asked about among them. ExactnessError."""
        self.logits, self.rows = logits, self.rows + rows
        self.floor = self._checked(self._answered[: len(logits)])
        self.asked = tuple(self._asked(steps) for steps in self._resolved)

    @property
    def last_step(self) -> int:
        """The last produced token that is asked about."""
        return max(step for steps in self._resolved for step in steps)

    @property
    def n_prompt(self) -> int:
        """Positions of the prompt."""
        return self.prepared.encoded.n_tokens

    @property
    def generated_text(self) -> str:
        """The answer, without special tokens."""
        return self.loaded.tokenizer.decode(self.produced, skip_special_tokens=True)

    @property
    def forwards(self) -> float:
        """What was run so far, beside the answer itself, in forward passes of the sequence."""
        return self.rows / self.again.forward_rows()

    def effects(self, n: int, features_of: Callable[[slice], Features], tower: int) -> list[TargetEffects]:
        """What n variants do to each target. features_of: of some of them; tower: rows through the tower's layers that each
        takes."""
        found: list[list[TargetEffects]] = [[] for _ in self.asked]

        def run(which: slice) -> None:
            for of_target, one in zip(found, self.held(self.again.logits(features_of(which))), strict=True):
                of_target.append(one)
            self.observer.changed(which.stop - which.start)

        in_batches(n, max(self.again.n_positions, *self.again.n_patches), run, self.smaller)
        self.rows += n * (tower + self.again.decoder_rows())
        return [_joined(parts) for parts in found]

    def held(self, changed: torch.Tensor) -> list[TargetEffects]:
        """What variants do to each target. changed: [n, T, vocabulary], their logits."""
        every = [(list(one.steps), one.targets) for one in self.asked]
        return [effects_of_logits(self.logits[steps], changed[:, steps], targets) for steps, targets in every]

    def record(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of LookedEffects. own: what is said of the run besides."""
        encoded = self.prepared.encoded
        run = describe_run(self.loaded, self.prepared) | {"images": [image.source for image in encoded.images]}
        return {
            "tokens": self.tokens,
            "images": encoded.images,
            "n_prompt": self.n_prompt,
            "generated_text": self.generated_text,
            "floor": self.floor,
            "forwards": self.forwards,
            "meta": run | dict(own),
        }

    def target(self, asked: Asked, changes: Sequence[Change]) -> dict[str, Any]:
        """The fields of LookedTarget."""
        change, kl, top1, differs = zip(*changes, strict=True) if changes else ((),) * 4
        return {
            "steps": asked.steps,
            "text": asked.text,
            "probability": asked.probability,
            "logprob_change": np.array(change, dtype=np.float32),
            "kl_divergence": np.array(kl, dtype=np.float32),
            "top1": np.array(top1, dtype=np.int64),
            "top1_texts": self._texts_of(top1),
            "differs": np.array(differs, dtype=bool),
        }

    def _texts_of(self, ids: Sequence[int]) -> dict[int, str]:
        """By id."""
        ids = [*dict.fromkeys(ids)]
        return dict(zip(ids, token_texts(self.loaded.tokenizer, ids)[0], strict=True))

    def _steps_of(self, kinds: Sequence[str]) -> list[tuple[int, ...]]:
        tokenizer, spec = self.loaded.tokenizer, self.prepared.settings.target
        return resolve(spec, self.produced, self.texts, kinds, tokenizer.decode)

    def _asked(self, steps: tuple[int, ...]) -> Asked:
        targets = tuple(Target(self.n_prompt + step - 1, self.produced[step]) for step in steps)
        ids = [self.produced[step] for step in steps]
        scores = torch.log_softmax(self.logits[list(steps)].double(), dim=-1).cpu()
        probability = float(scores[range(len(ids)), ids].sum().exp())
        return Asked(steps, targets, self.loaded.tokenizer.decode(ids), probability)

    def _checked(self, own: torch.Tensor) -> float:
        """The floor; ExactnessError where this run is not the model's. own: [T, vocabulary], of the answer."""
        error, tolerance = apart(self.logits, own), TOLERANCE[self.logits.dtype]
        if not error <= tolerance:
            raise ExactnessError(
                f"the model run with its own features differs from its answer by {error:.1e} of its logits' spread "
                f"({tolerance:.0e} allowed): no effects are given"
            )
        ids = torch.tensor(self.produced[: len(own)], device=own.device).unsqueeze(1)
        first, second = (torch.log_softmax(one.double(), dim=-1).gather(1, ids) for one in (own, self.logits))
        return float((first - second).abs().max())

    def smaller(self, error: RuntimeError, size: int) -> int:
        """How many variants go together where `size` were too many; any other error goes on its way. DeviceError."""
        if not is_out_of_memory(error):
            raise error
        if size <= 1:
            raise DeviceError(f"out of memory with a single changed image: {SMALLER}") from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return size // 2


def _joined(parts: Sequence[TargetEffects]) -> TargetEffects:
    names = ("logprob_change", "kl_divergence", "top1", "differs")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return TargetEffects(**joined, probability=parts[0].probability)
