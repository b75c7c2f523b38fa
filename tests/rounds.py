"""Rounds in which several threads use one model at the same time: what each of them got, held against what it gets alone."""

import sys
import threading
from collections import Counter

import torch
from checkpoints import tiny_loaded
from tiny_models import tiny_inputs
from transformers import AttentionInterface, AttentionMaskInterface

import mask_impact

N_TOKENS = 4


def state_of(model):
    """All of a model that a block could leave behind it, and of what transformers looks up."""
    return {
        "configs": [
            (name, module.config.to_dict(), module.config._attn_implementation)
            for name, module in model.named_modules()
            if hasattr(module, "config")
        ],
        "generation": model.generation_config.to_dict(),
        "hooks": [
            (name, kind, dict(getattr(module, kind)))
            for name, module in model.named_modules()
            for kind in vars(module)
            if kind.endswith(("_hooks", "_with_kwargs", "_always_called"))
        ],
        "attributes": [(name, sorted(vars(module)), module.training) for name, module in model.named_modules()],
        "parameters": [(name, id(value), value.requires_grad, value.grad) for name, value in model.named_parameters()],
        "lookup": (
            AttentionInterface.get_interface,
            dict(AttentionInterface._global_mapping),
            dict(AttentionMaskInterface._global_mapping),
        ),
        "gradients": torch.is_grad_enabled(),
    }


def same_numbers(one, other):
    """Whether two results have the same tokens and distances."""
    return [step.token_id for step in one.steps] == [step.token_id for step in other.steps] and all(
        (mine.l2 == its.l2).all() and (mine.self_check == its.self_check).all()
        for mine, its in zip(one.steps, other.steps, strict=True)
    )


class Rounds:
    """A tiny model whose parameters want gradients, as after loading, and what its threads do: `uses` by name."""

    def __init__(self, name="qwen3"):
        self.loaded = tiny_loaded(name)
        self.model = self.loaded.model
        self.model.requires_grad_(True)
        prompts = [tiny_inputs(self.model, n, seed=n) for n in (5, 9, 7)]

        def analyze(inputs):
            return mask_impact.analyze(self.loaded, inputs, num_tokens=N_TOKENS, answer=False)

        def generate(inputs):
            return self.model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)

        def forward(inputs):
            output = self.model(**inputs).logits
            (gradient,) = torch.autograd.grad(output.sum(), self.model.model.layers[0].mlp.up_proj.weight)
            return torch.cat([output.detach().flatten(), gradient.flatten()])

        def explain(inputs):
            return mask_impact.explain(self.loaded, inputs, num_tokens=2, budget=12)

        def without(inputs):
            return mask_impact.without(self.loaded, inputs, "tokens 2", num_tokens=N_TOKENS)

        def answer(inputs):
            return mask_impact.analyze(self.loaded, inputs, num_tokens=2, budget=12, effect=True)

        self.uses = {
            one.__name__: (one, inputs, same)
            for one, inputs, same in (
                (analyze, prompts[0], same_numbers),
                (answer, prompts[1], same_numbers),
                (explain, prompts[2], lambda a, b: repr(a.targets) == repr(b.targets)),
                (without, prompts[1], lambda a, b: (a.answer, a.others) == (b.answer, b.others)),
                (generate, prompts[1], torch.equal),
                (forward, prompts[2], lambda a, b: torch.allclose(a, b, rtol=1e-5, atol=1e-6)),
            )
        }
        self.alone = {name: one(inputs) for name, (one, inputs, _) in self.uses.items()}

    def run(self, n_rounds, *names, switch=1e-5):
        """How often what came of it, over rounds in which the named uses run at the same time."""
        outcomes, interval = Counter(), sys.getswitchinterval()
        before = state_of(self.model)
        sys.setswitchinterval(switch)
        try:
            for _ in range(n_rounds):
                barrier = threading.Barrier(len(names))
                threads = [
                    threading.Thread(target=self._use, args=(name, barrier, outcomes), daemon=True) for name in names
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                if state_of(self.model) != before:
                    outcomes["the model is not as it was"] += 1
        finally:
            sys.setswitchinterval(interval)
        return outcomes

    def _use(self, name, barrier, outcomes):
        use, inputs, same = self.uses[name]
        barrier.wait()
        try:
            found = use(inputs)
            outcome = "right" if same(found, self.alone[name]) else f"{name}: wrong"
        except Exception as error:
            outcome = f"{name}: {type(error).__name__}: {str(error)[:80]}"
        outcomes[outcome] += 1
