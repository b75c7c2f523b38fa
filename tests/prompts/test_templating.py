"""Chat templates are programs of others: what they leave out is noticed, and what they do without end or bound is one line."""

import numpy as np
import pytest
from checkpoints import CHATML, make_tokenizer
from tiny_models import tiny_model
from tokenizers import Regex, normalizers

from mask_impact.errors import InputError
from mask_impact.models import loading
from mask_impact.models.processing import PictureTextProcessor
from mask_impact.prompts import encoding, limits
from mask_impact.prompts.encoding import encode
from mask_impact.prompts.images import read_pictures

TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ONLY_LISTS = TURN + "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}" + END
LISTS_WITH_IMAGES = TURN + (
    "{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
) + END  # fmt: skip
SYSTEM_TO_THE_LAST_USER = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ system ~ '\\n' if loop.last else '' }}{{ m.content | trim }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% endif %}{% endfor %}"
)
CONVERSATION = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n the cat <|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def rehearsed(monkeypatch):
    monkeypatch.setattr(encoding, "rehearse", limits.rehearse)


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3", vocab_size=320)


@pytest.fixture(scope="module")
def loaded_with(model):
    return lambda template: loading.wrap(model, make_tokenizer(template), name="tiny")


@pytest.fixture(scope="module")
def demo_vl():
    return loading.load("demo", kind="vl")


def with_template(demo_vl, template):
    processor = PictureTextProcessor(demo_vl.processor.image_processor, demo_vl.tokenizer, chat_template=template)
    return loading.wrap(demo_vl.model, processor, name="tiny")


def picture():
    return read_pictures([np.zeros((32, 32, 3), dtype=np.uint8)])


# --- every turn's text is there ---------------------------------------------------------------------------------------------


def test_a_template_that_reads_only_lists_gets_lists(loaded_with):
    only_text = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    assert encode(loaded_with(ONLY_LISTS), "the cat").text == only_text
    assert encode(loaded_with(ONLY_LISTS.replace("p.text", "p['text'] | trim")), " the cat\n").text == only_text
    fails_on_text = TURN + "{{ m.content[0].text + '' }}" + END
    assert encode(loaded_with(fails_on_text), "the cat").text == only_text


def test_a_system_text_stays_beside_an_image_where_a_template_reads_only_lists(demo_vl):
    text = encode(
        with_template(demo_vl, LISTS_WITH_IMAGES), CONVERSATION.replace("user\n", "user\n<image>"), picture()
    ).text
    assert text == CONVERSATION.replace("user\n", "user\n<|vision_start|><|image_pad|><|vision_end|>")
    assert encode(with_template(demo_vl, LISTS_WITH_IMAGES), CONVERSATION).text == CONVERSATION


def test_what_a_template_leaves_out_is_refused_and_named(loaded_with):
    for template, whose in (
        ("hello {{ messages | length }}", r"turn 0 \(system\), 'Be short.'"),
        (TURN + "{% if m.role == 'user' %}{{ m.content }}{% endif %}" + END, r"turn 0 \(system\), 'Be short.'"),
        (TURN + "{% if m.role == 'system' %}{{ m.content }}{% endif %}" + END, r"turn 1 \(user\), 'the cat'"),
        (TURN + "{{ m.content[:4] }}" + END, r"turn 0 \(system\), 'Be short.'"),
        (TURN + "{{ m.content | upper }}" + END, r"turn 0 \(system\), 'Be short.'"),
    ):
        with pytest.raises(InputError, match=f"chat template leaves out the text of {whose}; change its turns"):
            encode(loaded_with(template), CONVERSATION)


def test_turns_in_another_order_are_refused(loaded_with):
    prompt = (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n"
    )
    template = "{% for m in messages[::-1] %}[{{ m.content }}]{% endfor %}"
    with pytest.raises(InputError, match=r"leaves out the text of turn 1 \(assistant\), 'two'"):
        encode(loaded_with(template), prompt)
    assert encode(loaded_with(template), "one").text == "[one]"


def test_a_list_that_is_written_as_it_is_is_no_text(loaded_with, demo_vl):
    """Of strings the first leaves the text out; of lists it, and the second, write Python. One letter stands in many words."""
    lists_as_text = TURN + "{% if m.content is not string %}{{ m.content }}{% endif %}" + END
    for prompt in ("the cat", "t"):
        with pytest.raises(InputError, match=rf"leaves out the text of turn 0 \(user\), '{prompt}'"):
            encode(loaded_with(lists_as_text), prompt)
    with pytest.raises(InputError, match=r"leaves out the text of turn 0 \(user\), '<image>the cat'"):
        encode(with_template(demo_vl, TURN + "{{ m.content }}" + END), "the cat", picture())
    quoted = "what is {'type': 'text', 'text': 'x'}?"
    assert quoted in encode(loaded_with(CHATML), quoted).text


def test_what_known_templates_change_on_purpose_is_no_loss(loaded_with):
    """Spaces at the ends are cut, a system's text stands in the last user's turn, earlier thoughts are left out."""
    prompt = (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n one <|im_end|>\n"
        "<|im_start|>assistant\n<think>hm</think>two<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n"
    )
    text = encode(loaded_with(SYSTEM_TO_THE_LAST_USER), prompt).text
    assert text == "[INST]one[/INST]two[INST]Be short.\nthree[/INST]"


# --- templates that fail ----------------------------------------------------------------------------------------------------

FAILING = (
    "{{ 1 / 0 }}", "{{ 1 + 'a' }}", "{{ unknown() }}", "{{ messages.nothing.more }}", "{{ messages[9].content }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ [1] | sum('a') }}", "{{ {}['a'].b }}", "{{ 'a' | int | length }}",
    "{{ messages | map(attribute='x.y.z') | join(3) | nofilter }}", "{% include 'x' %}", "{% extends 'x' %}",
    "{% import 'x' as y %}", "{{ ().__class__.__bases__ }}", "{{ 'a'.format(**1) }}", "{{ '%d' % 'a' }}", "{{ [][0] + 1 }}",
    "{{ 'x' | tojson(indent=[]) }}", "{{ strftime_now(3) }}", "{{ raise_exception() }}", "{{ namespace(1) }}",
    "{{ dict(1) }}", "{{ range(10 ** 9) }}", "{{ 'a' | batch('b') | list }}", "{{ '{0.x}'.format('a') }}", "{{ 3() }}",
    "{{ [1, 'a'] | sort }}", "{{ none + 1 }}", "{% for a, b in messages[0].values() %}{{ a }}{% endfor %}", "{% for %}",
    "{{ 'a' * 'b' }}", "{{ (messages + [1]) | sort }}", "{{ (1).x.y }}",
)  # fmt: skip


@pytest.mark.parametrize("template", FAILING)
def test_a_template_that_fails_is_one_line_that_names_it(loaded_with, template):
    with pytest.raises(InputError, match=r"^the model's chat template (refuses the prompt: \S|leaves out)") as caught:
        encode(loaded_with(template), "the cat")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_several_templates_of_which_none_is_the_default_are_one_line(loaded_with):
    loaded = loaded_with({"tool_use": CHATML, "rag": CHATML})
    with pytest.raises(InputError, match=r"chat template refuses the prompt: ValueError: This model has multiple"):
        encode(loaded, "the cat")


# --- limits -----------------------------------------------------------------------------------------------------------------

WITHOUT_END = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 7 ** (9 ** 9) }}",
)  # fmt: skip
WITHOUT_BOUND = (
    "{{ 'x' * 10 ** 10 }}", "{{ 'x'.ljust(10 ** 10) }}", "{{ 'x' | center(10 ** 10) }}", "{{ '%10000000000d' % 1 }}",
    "{{ ([1] * 10 ** 10) | length }}",
    "{% set n = namespace(x='xx') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)


@pytest.fixture
def narrow(monkeypatch):
    """With all the time there is: a loaded machine would meet that limit first."""
    monkeypatch.setattr(limits, "MEMORY", 2**28)


@pytest.mark.parametrize("template", WITHOUT_END)
def test_a_template_without_end_is_one_line(loaded_with, quick, template):
    with pytest.raises(
        InputError, match=r"^the chat template of model 'tiny' takes more than 0\.3 s with this prompt; get"
    ):
        encode(loaded_with(template), "the cat")


@pytest.mark.parametrize("template", WITHOUT_BOUND)
def test_a_template_without_bound_is_one_line(loaded_with, narrow, template):
    with pytest.raises(
        InputError, match=r"^the chat template of model 'tiny' takes more than 256 MiB of memory with this"
    ):
        encode(loaded_with(template), "the cat")


def test_a_tokenizer_without_bound_is_one_line(loaded_with, quick, narrow):
    """Each of these makes ten characters of one."""
    loaded = loaded_with(None)
    tenfold = [normalizers.Replace(Regex("a"), "a" * 10) for _ in range(12)]
    loaded.tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(tenfold)
    with pytest.raises(InputError, match=r"^the tokenizer of model 'tiny' (takes more than|ends its process)"):
        encode(loaded, "the cat")


def test_what_was_rehearsed_is_rehearsed_again_only_for_a_much_longer_text(loaded_with, monkeypatch):
    forks, fork = [], limits.os.fork
    monkeypatch.setattr(limits.os, "fork", lambda: forks.append(1) or fork())
    loaded = loaded_with(CHATML)
    for length, n_forks in ((10, 1), (10, 1), (1000, 1), (1001, 2), (2002, 2), (1, 2)):
        encode(loaded, "x" * length)
        assert len(forks) == n_forks
    loaded.tokenizer.chat_template = CHATML + " "
    encode(loaded, "x")
    assert len(forks) == 3
