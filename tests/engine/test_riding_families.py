"""Families that no table knows: softcaps, sinks, multipliers, parallel branches, layer norms, experts, latent attention, layers
without softmax attention. Against brute force in float64, which runs the whole model once for each hidden key."""

import pytest
import torch
from marks import slow_but
from oracle import float32_becomes
from transformers import CONFIG_MAPPING, AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from mask_impact.engine.riding.engine import RidingEngine

N_PROMPT = 8  # longer than the sliding window
BASE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "shared_expert_intermediate_size": 16,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 20,
    "num_key_value_heads": 4,
}  # fmt: skip
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
ALTERNATING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 0.5, **ALTERNATING},
    "olmo": {"clip_qkv": None},
    "glm4": {"pad_token_id": 0},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.4, "embedding_multiplier": 2.0},
    "cohere2": {**ALTERNATING},
    "gpt_oss": {**EXPERTS, **ALTERNATING},
    "phi": {"partial_rotary_factor": 0.5},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48},
    "starcoder2": {"sliding_window": 5},
    "nemotron": {},
    "mixtral": {**EXPERTS},
    "qwen3_moe": {**EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "deepseek_v3": {**EXPERTS, **LATENT, "head_dim": 8},
    "qwen3_next": {**EXPERTS, **LINEAR, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen3_5_text": {**LINEAR},
}
WITHOUT = {"qwen3_next": ("layers.0",), "qwen3_5_text": ("layers.0",)}
# What is added to the residual stream, where it is not the attention's own output.
ENDS = {
    "gemma2": ("post_attention_layernorm", 1.0),
    "glm4": ("post_self_attn_layernorm", 1.0),
    "granite": ("self_attn", 0.5),
}
USUAL = ("gemma2", "gpt_oss", "gpt2", "granite", "deepseek_v3", "qwen3_next")
OPAQUE = {"gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "qwen3_next"}


def tiny_family(name, dtype=torch.float64, seed=0):
    """A tiny random model of a family, with lively weights, in evaluation mode."""
    config = CONFIG_MAPPING[name](**BASE | FAMILIES[name])
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    for leaf, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        flat = parameter.dim() == 1 or leaf.endswith("bias")
        drawn = parameter.detach() + 0.2 * noise if flat else 1.3 * noise / parameter.shape[-1] ** 0.5
        parameter.data = drawn.to(dtype)
        parameter.requires_grad_(False)
    model.config.dtype = dtype
    model.set_experts_implementation("eager")  # torch's grouped products know no float64
    return model


def family_inputs():
    ids = torch.randint(1, 90, (1, N_PROMPT), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class BruteForce:
    """Runs a model with an attention of its own, which hides one key from the last query in one of the layers."""

    def __init__(self, model):
        self.model = model
        self.layer = self.key = None
        self.called = []  # attention modules in their order
        self.heads = {}

    def attend(self, module, query, key, value, mask=None, scaling=None, softcap=None, s_aux=None, **_):
        if module not in self.called:
            self.called.append(module)
        n_groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(n_groups, 1) for part in (key, value))
        logits = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        if mask is None:
            mask = torch.zeros(logits.shape[-2:]).masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -torch.inf)
        logits = logits + mask[..., : key.shape[2]]
        if self.called.index(module) == self.layer:
            logits[:, :, -1, self.key] = -torch.inf
        if s_aux is not None:
            logits = torch.cat([logits, s_aux.to(logits).view(1, -1, 1, 1).expand(*logits.shape[:3], 1)], -1)
        weights = torch.softmax(logits, -1)[..., : key.shape[2]]
        output = (weights @ value).transpose(1, 2)
        self.heads[self.called.index(module)] = output[0, -1]
        return output, None

    def rows(self, inputs, layers):
        """Of each layer the last rows of its output, of what its attention branch adds, and [H, E] of its attention's heads."""
        seen = {name: {} for name in layers}
        end, factor = ENDS.get(self.model.config.model_type, (None, 1.0))

        def note(module, into, name, times=1.0):
            def keep(module, args, output):
                into[name] = times * (output[0] if isinstance(output, tuple) else output)[0, -1].double()

            return module.register_forward_hook(keep)

        handles, self.heads = [], {}
        for number, name in enumerate(layers):
            layer = self.model.get_decoder().get_submodule(name)
            branch = self.called[number] if end is None and self.called else layer.get_submodule(end or "")
            handles += [note(layer, seen[name], "full"), note(branch, seen[name], "attn", factor)]
        try:
            self.model(**inputs, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return [(seen[name]["full"], seen[name]["attn"], *self.heads[at]) for at, name in enumerate(layers)]

    @torch.no_grad()
    def measure(self, inputs, layers):
        """L2 [L, S, V] of Full, Attn and the heads, of the layers that have a map, by their names."""
        AttentionInterface.register("brute", self.attend)
        AttentionMaskInterface.register("brute", AttentionMaskInterface._global_mapping["eager"])
        configs = {id(one.config): one.config for one in self.model.modules() if hasattr(one, "config")}
        before = [(config, config._attn_implementation) for config in configs.values()]
        try:
            for config in configs.values():
                config._attn_implementation = "brute"
            with float32_becomes(torch.float64):
                self.rows(inputs, layers)  # who calls the attention
                baseline = self.rows(inputs, layers)
                found = []
                for self.layer, own in enumerate(baseline):
                    for self.key in range(N_PROMPT):
                        moved = self.rows(inputs, layers)[self.layer]
                        found.append(torch.stack([(a - b).norm() for a, b in zip(moved, own, strict=True)]))
            return torch.stack(found).view(len(layers), N_PROMPT, -1)
        finally:
            for config, name in before:
                config._attn_implementation = name
            for interface in (AttentionInterface, AttentionMaskInterface):
                interface._global_mapping.pop("brute", None)


def measured(model, inputs, n_tokens=1, **settings):
    with torch.no_grad(), RidingEngine(model, **settings) as engine:
        if n_tokens == 1:
            model(**inputs, use_cache=False)
        else:
            model.generate(**inputs, max_new_tokens=n_tokens, do_sample=False)
    return engine


@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
def test_a_family_without_a_table_agrees_with_brute_force(name):
    """Full, Attn and heads in float64, where also norms are; what the model calls float32 is float64 in both."""
    model, inputs = tiny_family(name), family_inputs()
    with float32_becomes(torch.float64):
        engine = measured(model, inputs)
    assert engine.unmapped == WITHOUT.get(name, ())
    wanted = BruteForce(model).measure(inputs, engine.mapped)
    step = engine.steps[0]
    largest = wanted.amax(1, keepdim=True)
    floor = 1e-9 * largest
    floor[..., 0] += 10 * step.noise_floor.nan_to_num(0.0)[:, None]
    assert bool(((step.l2 - wanted).abs() <= 1e-7 * wanted + floor).all()), step.l2 / wanted
    assert bool((floor <= 1e-6 * largest).all())
    assert bool(torch.isfinite(step.noise_floor).any()) == (name in OPAQUE)


@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
def test_decode_steps_with_a_cache_measure_what_one_pass_over_all_does(name):
    """float32; the last of three steps against the sequence at once, and the same tokens as without the engine."""
    model, inputs = tiny_family(name, torch.float32), family_inputs()
    with torch.no_grad():
        produced = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    engine = measured(model, inputs, 3)
    assert len(engine.steps) == 3
    whole = {"input_ids": produced[:, :-1], "attention_mask": torch.ones_like(produced[:, :-1])}
    again = measured(model, whole)
    l2, wanted = engine.steps[-1].l2, again.steps[0].l2
    floor = 1e-4 * wanted.amax((1, 2), keepdim=True)
    assert bool(((l2 - wanted).abs() <= 2e-3 * wanted + floor).all())


def test_brute_force_would_tell_a_multiplier_that_is_left_out(monkeypatch):
    """Granite multiplies a branch before it is added; Attn without that is twice as long."""
    model, inputs = tiny_family("granite"), family_inputs()
    with float32_becomes(torch.float64):
        engine = measured(model, inputs)
    monkeypatch.setitem(ENDS, "granite", ("self_attn", 1.0))
    wanted = BruteForce(model).measure(inputs, engine.mapped)[..., 1]
    torch.testing.assert_close(2 * engine.steps[0].l2[..., 1], wanted)
