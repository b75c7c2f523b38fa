"""Five checks that a vision-language model is understood rightly, on text: run it, or let pytest collect the same five.

python test_vl_phase1.py                      on the bundled demo model
python test_vl_phase1.py --model Qwen/Qwen3-VL-4B-Instruct
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import pytest
import torch

import mask_impact
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.self_check import SELF_CHECK_TOLERANCE
from mask_impact.errors import MaskImpactError
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.encoding import encode

PROMPT = "What is the capital of France?"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return mask_impact.load("demo", kind="vl")


def test_model_loading_and_architecture(loaded: LoadedModel) -> None:
    """Every decoder layer is found, at its path, with norms on queries and keys and grouped key/value heads."""
    config = loaded.model.config.text_config
    decoder = decoder_of(loaded.model)
    assert loaded.kind == "vl", f"{type(loaded.model).__name__} is no vision-language model"
    assert not loaded.model.training
    assert len(decoder.layers) == config.num_hidden_layers
    assert decoder.layers[0].module is loaded.model.model.language_model.layers[0]
    for layer in decoder.layers:
        assert layer.module.self_attn.q_norm.weight.shape == (config.head_dim,)
        assert layer.module.self_attn.k_norm.weight.shape == (config.head_dim,)
        assert layer.module.self_attn.k_proj.out_features == config.num_key_value_heads * config.head_dim
        assert layer.module.self_attn.is_causal
    assert len(loaded.model.model.visual.deepstack_visual_indexes) == 3
    assert all(parameter.isfinite().all() for parameter in loaded.model.parameters())


def test_text_only_input_processing(loaded: LoadedModel) -> None:
    """The templated prompt is what the tokens spell; all of them are text, none stands for an image."""
    encoded = encode(loaded, PROMPT)
    ids = encoded.inputs["input_ids"]
    assert PROMPT in encoded.text
    assert loaded.tokenizer.decode(ids[0]) == encoded.text
    assert ids.shape == encoded.inputs["mm_token_type_ids"].shape == (1, encoded.n_tokens)
    assert not encoded.inputs["mm_token_type_ids"].any()
    assert loaded.model.config.image_token_id not in ids
    assert encoded.tokens.kinds[0] == "special", "a chat template opens with a special token"
    assert "text" in encoded.tokens.kinds
    assert (encoded.tokens.image == -1).all()


def test_forward_pass(loaded: LoadedModel) -> None:
    """The forward that the engine rides on gives the model's own logits, and every layer's rows are reproduced."""
    inputs = _inputs(loaded)
    with torch.no_grad():
        plain = loaded.model(**inputs).logits.float()
        with RidingEngine(loaded.model) as engine:
            ridden = loaded.model(**inputs).logits.float()
    tolerance = SELF_CHECK_TOLERANCE[loaded.model.dtype]
    error = float((ridden - plain).norm() / plain.norm())
    assert plain.isfinite().all()
    assert error <= tolerance, f"the engine's forward differs from the model's by {error:.1e}"
    assert (ridden[0, -1].argmax() == plain[0, -1].argmax()).item()
    step = engine.steps[0]
    assert step.l2.shape[:2] == (len(engine.attending.numbers), inputs["input_ids"].shape[1])
    assert float(step.self_check.max()) <= tolerance
    assert bool((step.l2[..., 0] > 0).any(dim=1).all()), "hiding tokens changes nothing in some layer"


def test_layer_access(loaded: LoadedModel) -> None:
    """Hooks see each layer's own input and output: on text one layer's output is the next one's input, and no tuple."""
    seen = {}
    layers = decoder_of(loaded.model).layers
    handles = [
        layer.module.register_forward_hook(
            lambda module, args, kwargs, output, index=layer.index: seen.update(
                {index: (args[0] if args else kwargs["hidden_states"], output)}
            ),
            with_kwargs=True,
        )
        for layer in layers
    ]
    inputs = _inputs(loaded)
    try:
        with torch.no_grad():
            loaded.model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    shape = (1, inputs["input_ids"].shape[1], loaded.model.config.text_config.hidden_size)
    assert sorted(seen) == list(range(len(layers)))
    for index, (entering, leaving) in seen.items():
        assert isinstance(leaving, torch.Tensor)
        assert entering.shape == leaving.shape == shape
        assert not torch.equal(entering, leaving), f"layer {index} does nothing"
        if index:
            assert torch.equal(entering, seen[index - 1][1])


def test_rope_embeddings(loaded: LoadedModel) -> None:
    """On text, M-RoPE with its three equal position axes is plain rotary with the same frequencies, all of them."""
    rotary = loaded.model.model.language_model.rotary_emb
    n = 50
    positions = torch.arange(n, device=loaded.model.device)
    state = torch.zeros(1, n, 1, dtype=torch.float32, device=loaded.model.device)
    cos, sin = rotary(state, positions.expand(3, 1, n))
    angles = positions[:, None].float() * rotary.inv_freq.float()[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    assert cos.shape == (1, n, loaded.model.config.text_config.head_dim)
    torch.testing.assert_close(cos[0], angles.cos() * rotary.attention_scaling, rtol=0, atol=1e-5)
    torch.testing.assert_close(sin[0], angles.sin() * rotary.attention_scaling, rtol=0, atol=1e-5)
    # Three different axes give something else: the check would notice.
    apart = torch.stack([positions, positions + 3, positions + 7])[:, None]
    assert not torch.allclose(rotary(state, apart)[0], cos, atol=1e-3)


def _inputs(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: value.to(loaded.model.device) for name, value in encode(loaded, PROMPT).inputs.items()}


TESTS: tuple[tuple[str, Callable[[LoadedModel], None]], ...] = (
    ("Model Loading and Architecture", test_model_loading_and_architecture),
    ("Text-Only Input Processing", test_text_only_input_processing),
    ("Forward Pass", test_forward_pass),
    ("Layer Access", test_layer_access),
    ("RoPE Embeddings", test_rope_embeddings),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="hub id or folder of a Qwen3-VL model (default: demo)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    args = parser.parse_args(argv)
    try:
        model = mask_impact.load(args.model, kind="vl", device=args.device)
    except MaskImpactError as error:
        print(f"✗ TEST 1: {TESTS[0][0]}: {error}")
        return 1
    failed = []
    for number, (name, test) in enumerate(TESTS, start=1):
        try:
            test(model)
        except (AssertionError, AttributeError, RuntimeError, MaskImpactError) as error:
            failed.append(number)
            reason = " ".join(str(error).split())[:200] or "a check in it failed"
            print(f"✗ TEST {number}: {name}: {reason}")
        else:
            print(f"✓ TEST {number}: {name}")
    if failed:
        print(f"\n✗ FAILED: TEST {', '.join(map(str, failed))}")
        return 1
    print("\n✓ ALL TESTS PASSED!")
    return 0


if __name__ == "__main__":
    sys.exit(main())
