"""DeepStack's levels kept or taken away: against hooks before decoder layers, in every set; answers, files, what is refused."""

import csv
import json
from pathlib import Path

import eye_oracle
import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer, save_checkpoint
from PIL import Image
from tiny_models import tiny_image_inputs, tiny_model

import mask_impact
from mask_impact.commands.main import main
from mask_impact.engine import feature_sets
from mask_impact.engine.feature_sets import EverySet
from mask_impact.engine.features import Features
from mask_impact.errors import ExactnessError, InputError, UnsupportedArchitecture, UsageError
from mask_impact.findings.shapley import members
from mask_impact.models import loading
from mask_impact.results.deepstack_files import DEEPSTACK_COLUMNS

PROMPT = "the cat sat"
N_TOKENS = 2
CELL = 8
NATS = 1e-4
SHAPES = Path(__file__).parents[2] / "examples" / "shapes.png"


def noise(rows, columns, seed=0):
    """A picture of so many image tokens."""
    return np.random.default_rng(seed).integers(0, 256, (rows * CELL, columns * CELL, 3), dtype=np.uint8)


PICTURE, OTHER = noise(2, 3), noise(2, 3, 7)
CORNER = "image rows 1 columns 2"  # the last token of six


@pytest.fixture(scope="module")
def loaded(vl_checkpoint):
    return loading.load(str(vl_checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def deepstack(loaded):
    """The analysis of PICTURE without answers, unless told otherwise."""
    usual = {"images": PICTURE, "num_tokens": N_TOKENS, "answers": False}
    return lambda **given: mask_impact.deepstack(loaded, PROMPT, **usual | given)


class Plain:
    """The oracle for one result: every set of parts by hooks before the decoder's layers."""

    def __init__(self, loaded, found, picture=PICTURE):
        self.model, self.found, text = loaded.model, found, found.meta["templated_prompt"]
        self.inputs = eye_oracle.processed(loaded, text, [picture])
        self.produced = found.tokens.ids[found.n_prompt :].tolist()
        self.before = eye_oracle.logits(self.model, self.inputs, self.produced)
        every = np.flatnonzero(found.tokens.image == 0).tolist()
        self.tokens = [every.index(position) for position in found.positions]
        self.own = eye_oracle.tower_parts(self.model, self.inputs)
        self.others = self.baseline(loaded, text, picture)

    def baseline(self, loaded, text, picture):
        """[M, hidden] of each part."""
        kind = self.found.baseline
        if kind in ("mean", "zero"):
            return [part.mean(dim=0).expand_as(part) if kind == "mean" else torch.zeros_like(part) for part in self.own]
        if kind == "blank" and len(self.tokens) < len(self.own[0]):
            picture = eye_oracle.filled(picture, (16, 8, 24, 16), "border")
        elif kind == "blank":
            picture = np.broadcast_to(
                np.sort(picture.reshape(-1, 3), axis=0)[(picture[..., 0].size - 1) // 2], picture.shape
            )
        else:
            picture = OTHER
        return eye_oracle.tower_parts(self.model, eye_oracle.processed(loaded, text, [np.ascontiguousarray(picture)]))

    def logits(self, number):
        """[T, vocabulary], with the parts of a set kept."""
        taken = [part for part in range(len(self.own)) if not number >> part & 1]
        where = list(self.found.positions), self.tokens
        before = eye_oracle.differing(self.model, self.own, self.others, *where, taken)
        return eye_oracle.logits(self.model, self.inputs, self.produced, before=before)

    def assert_agrees(self, nats=NATS):
        """Every row of the result."""
        for target in self.found.targets:
            for number in range(len(target.top1)):
                after = self.logits(number)
                change, kl, top1 = eye_oracle.effect(self.before, after, self.produced, target.steps)
                assert abs(target.logprob_change[number] - change) < nats, self.found.kept(number)
                assert abs(target.kl_divergence[number] - kl) < nats, self.found.kept(number)
                assert target.differs[number] == (top1 is not None)
                assert top1 in (None, target.top1[number])
            assert abs(target.logprob_change).max() > 0.05


# --- against hooks before decoder layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("region", "given"), [
    ("image", {}), (CORNER, {}), (CORNER, {"baseline": "mean"}), ("image", {"baseline": "zero"}), ("image", {"other": OTHER}),
], ids=["image blank", "cell blank", "cell mean", "image zero", "another picture"])  # fmt: skip
def test_every_set_of_parts_agrees_with_hooks_before_decoder_layers(region, given, loaded, deepstack):
    found = deepstack(region=region, **given)
    assert len(found.targets[0].top1) == 16
    assert len(found.positions) == (1 if region == CORNER else 6)
    Plain(loaded, found).assert_agrees()


def test_a_float64_model_agrees_to_its_own_digits(vl_checkpoint):
    loaded = loading.load(str(vl_checkpoint), device="cpu", dtype="float32")
    loaded.model.double()
    found = mask_impact.deepstack(loaded, PROMPT, images=PICTURE, answers=False, num_tokens=2, target="each")
    assert len(found.targets) == 2
    Plain(loaded, found).assert_agrees(1e-6)


def test_the_parts_are_those_of_the_configuration(tmp_path):
    """Two levels, whose tower layers are listed from behind."""
    folder = save_checkpoint(tmp_path / "m", "qwen3_vl", vision_config={"deepstack_visual_indexes": [2, 1]})
    loaded = loading.load(str(folder), device="cpu", dtype="float32")
    found = mask_impact.deepstack(loaded, PROMPT, images=PICTURE, num_tokens=1, answers=False)
    assert [(part.name, part.vision_layer, part.decoder_layer) for part in found.parts] == [
        ("main", None, None), ("level 0", 1, 0), ("level 1", 2, 1),
    ]  # fmt: skip
    assert [found.kept(number) for number in (0, 1, 6, 7)] == [
        "none", "main", "level 0 + level 1", "main + level 0 + level 1",
    ]  # fmt: skip
    Plain(loaded, found).assert_agrees()


def test_of_several_images_only_the_region_s_change(loaded, deepstack):
    """Blanking the whole first image: as another picture that is plain."""
    pictures = [PICTURE, OTHER[:, :16]]
    plain = np.broadcast_to(np.sort(PICTURE.reshape(-1, 3), axis=0)[(16 * 24 - 1) // 2], PICTURE.shape)
    blank = deepstack(images=pictures, region="image 0")
    other = deepstack(images=pictures, region="image 0", other=np.ascontiguousarray(plain))
    np.testing.assert_allclose(blank.targets[0].logprob_change, other.targets[0].logprob_change, atol=NATS)
    both = deepstack(images=pictures, num_tokens=1)
    assert len(both.positions) == 10
    text = both.meta["templated_prompt"]
    inputs = eye_oracle.processed(loaded, text, pictures)
    grey = [
        np.broadcast_to(np.sort(one.reshape(-1, 3), axis=0)[(one[..., 0].size - 1) // 2], one.shape) for one in pictures
    ]
    blanked = eye_oracle.processed(loaded, text, [np.ascontiguousarray(one) for one in grey])
    produced = both.tokens.ids[-1:].tolist()
    change, _, _ = eye_oracle.effect(
        *(eye_oracle.logits(loaded.model, one, produced) for one in (inputs, blanked)), produced, (0,)
    )
    assert both.targets[0].logprob_change[0] == pytest.approx(change, abs=NATS)


def test_a_mixture_of_experts_with_ready_inputs():
    model = tiny_model("qwen3_vl_moe")
    inputs = tiny_image_inputs(model)
    found = mask_impact.deepstack(
        loading.wrap(model, make_tokenizer()), inputs, num_tokens=1, baseline="zero", answers=False
    )
    own, produced = eye_oracle.tower_parts(model, inputs), found.tokens.ids[-1:].tolist()
    before = eye_oracle.logits(model, inputs, produced)
    where = list(found.positions), list(range(6))
    zeros = [torch.zeros_like(part) for part in own]
    for number in range(16):
        taken = [part for part in range(4) if not number >> part & 1]
        hooks = eye_oracle.differing(model, own, zeros, *where, taken)
        change, _, _ = eye_oracle.effect(
            before, eye_oracle.logits(model, inputs, produced, before=hooks), produced, (0,)
        )
        assert abs(found.targets[0].logprob_change[number] - change) < NATS


# --- broken versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_too", [False, True])
def test_a_level_that_is_added_behind_the_wrong_decoder_layer_is_told_from_the_model(
    own_too, loaded, deepstack, monkeypatch
):
    """By the run itself where its own features are, too; else by the oracle."""
    made = EverySet.__init__

    def turned(self, *given):
        made(self, *given)
        for parts in self._parts if own_too else self._parts[:1]:
            parts[1:] = [*parts[2:], parts[1]]

    monkeypatch.setattr(EverySet, "__init__", turned)
    with pytest.raises(ExactnessError if own_too else AssertionError):
        Plain(loaded, deepstack()).assert_agrees()


def test_a_level_that_comes_in_a_layer_late_is_told_from_the_model(deepstack, monkeypatch):
    through = feature_sets._Rerun.through
    monkeypatch.setattr(
        feature_sets._Rerun,
        "through",
        lambda self, layer, states: through(self, max(0, layer - 1) if layer < 3 else layer, states),
    )
    with pytest.raises(ExactnessError, match="no effects are given"):
        deepstack()


def test_parts_that_are_taken_for_each_other_are_told_from_the_model(loaded, deepstack, monkeypatch):
    """The main features for level 2's, both of the baseline."""
    made = EverySet.__init__

    def turned(self, *given):
        made(self, *given)
        self._parts[0] = self._parts[0][-1:] + self._parts[0][:-1]

    monkeypatch.setattr(EverySet, "__init__", turned)
    with pytest.raises(AssertionError):
        Plain(loaded, deepstack()).assert_agrees()


def test_tokens_that_are_taken_for_each_other_are_told_from_the_model(loaded, deepstack, monkeypatch):
    taking = Features.taking
    monkeypatch.setattr(
        Features, "taking", lambda own, other, tokens, *parts: taking(own, other, tokens.roll(1), *parts)
    )
    with pytest.raises(AssertionError):
        Plain(loaded, deepstack(region=CORNER, baseline="zero")).assert_agrees()


# --- answers, shares, cost --------------------------------------------------------------------------------------------------


def answers_agree(loaded, found):
    """Whether they are those of the model's own generate() over the whole prompt, with a hook on its tower."""
    plain, agree = Plain(loaded, found), []
    for number, text in found.answers.items():
        kept = [number >> part & 1 for part in range(4)]
        parts = [one if keep else other for keep, one, other in zip(kept, plain.own, plain.others, strict=True)]
        module, hook = eye_oracle.giving(loaded.model, parts)
        with module.register_forward_hook(hook):
            ids = loaded.model.generate(**plain.inputs, max_new_tokens=4, do_sample=False)[0, found.n_prompt :]
        agree.append(text == loaded.tokenizer.decode(ids, skip_special_tokens=True))
    return all(agree)


@pytest.mark.parametrize(("at_once", "target"), [(4096, "0"), (40, "3"), (1, "0")])
def test_answers_are_those_that_the_model_generates_with_the_tower_s_output_replaced(
    at_once, target, loaded, deepstack, monkeypatch
):
    """With nothing kept, each part alone and each but one; in batches of any size, and whichever rows run."""
    monkeypatch.setattr(feature_sets, "ROWS_AT_ONCE", at_once)
    found = deepstack(answers=True, num_tokens=4, baseline="mean", target=target)
    assert [found.kept(number) for number in found.answers] == [
        "none", "main", "level 0", "level 1", "level 2", "level 0 + level 1 + level 2", "main + level 1 + level 2",
        "main + level 0 + level 2", "main + level 0 + level 1",
    ]  # fmt: skip
    assert answers_agree(loaded, found)
    assert len({*found.answers.values()}) > 1


def test_answers_that_go_on_from_another_set_s_keys_are_told_from_the_model(loaded, deepstack, monkeypatch):
    cache = feature_sets._Rerun.cache
    monkeypatch.setattr(
        feature_sets._Rerun, "cache", lambda self, held, which: cache(self, held, [*which[1:], which[0]])
    )
    assert not answers_agree(loaded, deepstack(answers=True, num_tokens=4, baseline="mean"))


def test_answers_run_nothing_of_the_prompt_but_its_last_token(loaded, deepstack, monkeypatch):
    """Of the nine of them, each token but the last goes through the layers once."""
    rows, mlp = [0], loaded.model.model.language_model.layers[0].mlp
    own = mlp.forward  # hooks of others are refused

    def forward(states):
        rows[-1] += states.shape[:-1].numel()
        return own(states)

    monkeypatch.setattr(mlp, "forward", forward)
    deepstack(num_tokens=4)
    rows.append(0)
    deepstack(num_tokens=4, answers=True)
    assert 0 < rows[1] - rows[0] <= 9 * 4


def test_a_prompt_that_ends_in_an_image_is_refused():
    """What is read there would be an image token's row."""
    model = tiny_model("qwen3_vl")
    inputs = tiny_image_inputs(model)
    end = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
    cut = inputs | {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with pytest.raises(InputError, match="the prompt ends in an image token: put text behind the image"):
        mask_impact.deepstack(loading.wrap(model, make_tokenizer()), cut, num_tokens=1, baseline="zero")


def test_shapley_values_add_up_and_norms_are_the_features_own(loaded, deepstack):
    found = deepstack(region=CORNER)
    target = found.targets[0]
    assert target.shapley.sum() == pytest.approx(-target.logprob_change[0], abs=1e-6)
    assert (target.logprob_change[-1], target.kl_divergence[-1], target.differs[-1]) == (0, 0, False)
    assert np.array_equal(target.interaction, target.interaction.T)
    norms = np.array([float(part[5].norm()) for part in Plain(loaded, found).own])
    np.testing.assert_allclose(found.norm_share, norms / norms.sum(), rtol=1e-5)


@pytest.mark.parametrize(("layers", "at_once"), [(6, 4096), (6, 20), (4, 40), (3, 40), (2, 40)])
def test_sets_that_share_layers_are_as_sets_that_run_alone(layers, at_once, tmp_path, monkeypatch):
    """Against the whole model with one set's features at a time; in batches of any size, also where levels come behind the last
    layer or nowhere."""
    monkeypatch.setattr(feature_sets, "ROWS_AT_ONCE", at_once)
    made, run, seen = EverySet.__init__, EverySet.logits, []
    monkeypatch.setattr(EverySet, "__init__", lambda self, *given: (seen.append(given), made(self, *given))[1])
    monkeypatch.setattr(EverySet, "logits", lambda self, *how: (seen.append(run(self, *how)), seen[-1])[1])
    loaded = loading.load(str(save_checkpoint(tmp_path / "m", "qwen3_vl", num_hidden_layers=layers)), dtype="float32")
    mask_impact.deepstack(loaded, PROMPT, images=PICTURE, num_tokens=3, region=CORNER, answers=False)
    (again, _, own, base, _, tokens, _), found = seen
    assert found.shape[:2] == (16, 3)
    for number, kept in enumerate(members(4)):
        wanted = again.logits(own.taking(base, tokens, torch.from_numpy(~kept)[None]))[0]
        torch.testing.assert_close(found[number], wanted, rtol=0, atol=1e-5)
    assert float((found[0] - found[-1]).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_set_with_all_parts_is_the_answer_s_own_run(dtype, tmp_path, monkeypatch):
    """In bfloat16 it runs as the others do: rounding is part of what it is held against."""
    folder = save_checkpoint(tmp_path / "m", "qwen3_vl", num_hidden_layers=6)
    loaded = loading.load(str(folder), device="cpu", dtype=dtype)
    ask = lambda: mask_impact.deepstack(loaded, PROMPT, images=PICTURE, num_tokens=2, answers=False)  # noqa: E731
    found = ask()
    assert found.floor < {"float32": 1e-5, "bfloat16": 0.2}[dtype]
    through, ended = feature_sets._Rerun.through, []
    monkeypatch.setattr(
        feature_sets._Rerun, "through", lambda self, *given: (ended.append(len(given[1])), through(self, *given))[1]
    )
    ask()
    assert (max(ended) == 15) == (dtype == "float32")


def test_a_level_that_comes_in_late_is_told_by_the_keys_of_the_next_layer(tmp_path, monkeypatch):
    """Before anything else is run."""
    loaded = loading.load(str(save_checkpoint(tmp_path / "m", "qwen3_vl", num_hidden_layers=6)), dtype="float32")
    put = EverySet._put
    monkeypatch.setattr(EverySet, "_put", lambda self, states, features: put(self, states, 1.01 * features))
    with pytest.raises(ExactnessError, match="decoder layer 3 is given other states than in the model's own run"):
        mask_impact.deepstack(loaded, PROMPT, images=PICTURE, num_tokens=2, answers=False)


@pytest.mark.parametrize("region", [CORNER, "image"])
def test_the_rows_that_are_counted_are_those_that_run(region, loaded, deepstack, monkeypatch):
    """Whole rows by what comes out of MLPs; of those that give keys and values only, the maps by their weights. Beside the answer
    itself, whose rows are those of the prompt and of what was produced before the last token."""
    text, vision = loaded.model.model.language_model, loaded.model.model.visual
    rows = dict.fromkeys(("mlp", "q_proj", "patches"), 0)

    def counted(name, module):
        """Hooks of others are refused; so the module's own forward counts."""
        own = module.forward

        def forward(hidden, *rest, **how):
            rows[name] += hidden.shape[:-1].numel()
            return own(hidden, *rest, **how)

        monkeypatch.setattr(module, "forward", forward)

    for layer in text.layers:
        counted("mlp", layer.mlp)
        counted("q_proj", layer.self_attn.q_proj)
    for block in vision.blocks:
        counted("patches", block)
    found = deepstack(region=region)

    def weights(*modules):
        return sum(one.weight.numel() for one in modules)

    layer, block = text.layers[0], vision.blocks[0]
    attention, mlp = layer.self_attn, layer.mlp
    entering = weights(attention.q_proj, attention.k_proj, attention.v_proj)
    of_layer = entering + weights(attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    of_block = weights(block.attn.qkv, block.attn.proj, block.mlp.linear_fc1, block.mlp.linear_fc2)
    n_positions, n_layers = len(found.tokens.ids) - 1, len(text.layers)
    forward = n_positions * n_layers * of_layer + 24 * len(vision.blocks) * of_block
    ran = rows["mlp"] * of_layer + (rows["q_proj"] - rows["mlp"]) * entering + rows["patches"] * of_block
    assert rows["q_proj"] > rows["mlp"]
    assert found.forwards == pytest.approx(ran / forward - 1, abs=0.02)


def test_the_tower_runs_once_for_the_baseline(loaded, deepstack):
    """Beside the answer itself."""
    calls = []
    with loaded.model.model.visual.register_forward_hook(lambda *args: calls.append(1)):
        deepstack()
    assert len(calls) == 2


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "kind", "said"), [
    ({"region": "question"}, InputError, "'question' has tokens that are no part of an image"),
    ({"region": "image 1"}, InputError, "there is no image 1"),
    ({"region": 5}, UsageError, "`region` must be text, not int"),
    ({"baseline": "black"}, UsageError, "`baseline` must be blank, mean or zero, not 'black'"),
    ({"images": [PICTURE, PICTURE], "other": OTHER}, UsageError, "the region 'image' is in 2"),
    ({"images": ()}, InputError, "the prompt has no image"),
    ({"max_cost": 100}, UsageError, "rows through layers, as many as"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line(given, kind, said, deepstack):
    with pytest.raises(kind, match=said):
        deepstack(**given)


def test_models_without_deepstack_are_one_line(text_checkpoint, tmp_path):
    folder = save_checkpoint(tmp_path / "m", "qwen3_vl", vision_config={"deepstack_visual_indexes": []})
    for model, images in ((str(folder), PICTURE), (str(text_checkpoint), ())):
        with pytest.raises(UnsupportedArchitecture, match="has no DeepStack: nothing of an image is added"):
            mask_impact.deepstack(model, PROMPT, images=images)


# --- files and what is printed ----------------------------------------------------------------------------------------------


def test_the_table_has_every_set_and_what_is_of_a_part_where_it_is_alone(deepstack, tmp_path):
    found = deepstack(answers=True)
    paths = found.save(tmp_path / "x", "csv,json,parquet")
    assert {path.name for path in paths} == {f"x.deepstack.{end}" for end in ("csv", "json", "parquet", "meta.json")}
    with open(tmp_path / "x.deepstack.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == DEEPSTACK_COLUMNS
    assert len(rows) == 16
    alone = {row["parts_kept"]: (float(row["shapley"]), float(row["norm_share"])) for row in rows if row["shapley"]}
    assert list(alone) == ["main", "level 0", "level 1", "level 2"]
    np.testing.assert_allclose(
        list(alone.values()), np.stack([found.targets[0].shapley, found.norm_share], axis=1), rtol=1e-5
    )
    changes = [float(row["logprob_change"]) for row in rows]
    np.testing.assert_allclose(changes, found.targets[0].logprob_change, rtol=1e-6)
    meta = json.loads((tmp_path / "x.deepstack.meta.json").read_text())
    assert [part["vision_layer"] for part in meta["parts"]] == [None, 0, 1, 2]
    assert len(meta["answers"]) == 9
    assert found.to_frame().columns.tolist() == list(DEEPSTACK_COLUMNS)
    assert "<pre>" in found._repr_html_()


def test_the_command_prints_what_each_part_adds(vl_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PICTURE).save("a.png")
    Image.fromarray(OTHER).resize((48, 32), 0).save("b.png")
    argv = ["deepstack", PROMPT, "-i", "a.png", "-m", str(vl_checkpoint), "-n", "2", "--from", "b.png"]
    assert main([*argv, "-v"]) == 0
    out, err = capsys.readouterr()
    assert "What is taken away is replaced by another picture." in out
    assert "level 0 (layer 0 to decoder 0)" in out
    assert "main + level 0 + level 1 + level 2" in out
    assert "Answers with parts kept:" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "Keeping parts: at most 25 runs" in err
    assert main([*argv, "--json", "--no-answers", "-q"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert (entry["baseline"], entry["answers"], len(entry["targets"][0]["sets"])) == ("picture", {}, 16)
    assert all(Path(path).is_file() for path in entry["files"])
    assert main([*argv[:-2], "-o", "x.deepstack"]) == 2
    assert "'x.deepstack' ends in .deepstack" in capsys.readouterr().err
    assert main(["deepstack", PROMPT, "-m", "demo"]) == 2
    assert "features are those of an image or a video: give --image FILE or --video FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_level_0_carries_the_colour_in_the_demo_s_picture():
    """Known from exchanging levels: colours come by the first levels, and one level less changes nothing. In 36 layers, as
    Qwen3-VL-4B has, all sets of parts of a token take less than ten forward passes."""
    found = mask_impact.deepstack(
        "demo", "What color is the star?", images=SHAPES, region="image rows 0 columns 3", num_tokens=1, answers=False
    )
    target = found.targets[0]
    assert found.parts[int(target.shapley.argmax())].name == "level 0"
    assert target.differs[[0, 1]].all()
    assert not target.differs[[14, 11, 7]].any()
    assert found.forwards < 10
