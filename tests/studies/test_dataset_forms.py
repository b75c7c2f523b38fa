"""Rows as others publish them are prompts with images, and what can't be read is one line with the keys that are there."""

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mask_impact.errors import InputError
from mask_impact.prompts.images import read_picture
from mask_impact.studies.dataset import read_dataset
from mask_impact.studies.jobs import Job

QUESTION = "<|im_start|>user\nWhat is <image>this?<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nBe short.<|im_end|>\n"


@pytest.fixture(scope="module")
def png():
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, "PNG")
    return file.getvalue()


def jobs_of(tmp_path, *rows, kind="vl"):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return list(read_dataset(path, kind=kind))


def test_messages_are_the_conversation_without_its_answer(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png)
    parts = [
        {"type": "text", "text": "What is "},
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "this?"},
    ]
    user, answer = {"role": "user", "content": parts}, {"role": "assistant", "content": "a cat"}
    system = {"role": "system", "content": "Be short."}
    with_answer, without = jobs_of(
        tmp_path, {"messages": [system, user, answer], "id": 7}, {"messages": [system, user]}
    )
    assert with_answer.prompt == without.prompt == SYSTEM + QUESTION
    assert with_answer.images == (str(tmp_path / "a.png"),)
    assert (with_answer.carried, without.carried) == ({"id": 7, "expected": "a cat"}, {})
    (own,) = jobs_of(tmp_path, {"messages": [user, answer], "answer": "cat"})
    assert own.carried == {"answer": "cat"}  # the row says itself what is expected
    url = {"type": "image_url", "image_url": {"url": "a.png"}}
    (job,) = jobs_of(tmp_path, {"messages": [{"role": "user", "content": [parts[0], url, parts[2]]}]})
    assert (job.prompt, job.images) == (QUESTION, with_answer.images)


def test_llava_s_conversations_are_read(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png)
    turns = [{"from": "human", "value": "What is <image>this?"}, {"from": "gpt", "value": "a cat"}]
    (job,) = jobs_of(tmp_path, {"id": "1", "image": "a.png", "conversations": turns})
    assert (job.prompt, job.images) == (QUESTION, (str(tmp_path / "a.png"),))


def test_images_within_rows_are_read(tmp_path, png):
    """As Hugging Face's datasets write them, in Parquet and, as an address, in JSON."""
    path = tmp_path / "rows.parquet"
    held = [{"bytes": png, "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")}]
    parquet.write_table(pa.table({"prompt": ["What?", "What?"], "image": held}), path)
    (tmp_path / "a.png").write_bytes(png)
    jobs = list(read_dataset(path, kind="vl"))
    address = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    jobs += jobs_of(tmp_path, {"prompt": "What?", "image": address}, {"prompt": "What?", "images": [{"path": "a.png"}]})
    for job in jobs:
        picture = read_picture(*job.images)
        assert np.array_equal(np.asarray(picture.image).ravel(), np.arange(192))
        assert len(picture.source) < 200


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a", "answer": "b"}, "prompt is missing; the row has 'question, answer', and needs prompt or messages or"),
        ({"prompt": None}, "prompt must be text, not null"),
        ({"messages": []}, "messages must be a list of turns, each with role and content, not an empty list"),
        ({"messages": "hi"}, "messages must be a list of turns"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 0 of messages has role the text 'tool'; human, user, gpt"),
        ({"messages": [{"content": "x"}]}, "turn 0 of messages has role null"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "neither text, image nor video: the text 'audio'"),
        ({"messages": [{"role": "user", "content": 5}]}, "a part that is neither text, image nor video: the number 5"),
        ({"conversations": [{"role": "user", "content": "x"}]}, "turn 0 of conversations has from null"),
        ({"prompt": "x", "image": {"bytes": "text"}}, "an image's bytes must be bytes"),
        ({"prompt": "x", "image": {"pixels": 5}}, "image must be a path, a list of paths, or null, not a mapping"),
    ],
)  # fmt: skip
def test_rows_in_other_forms_are_one_line_before_a_model_is_loaded(tmp_path, row, said):
    (problem,) = jobs_of(tmp_path, row)
    assert not isinstance(problem, Job)
    assert said in problem.message
    assert "\n" not in problem.message


def test_columns_of_these_names_beside_a_prompt_are_carried_along(tmp_path):
    (job,) = jobs_of(tmp_path, {"prompt": "hi", "messages": "none", "images": 3})
    assert (job.prompt, job.images, job.carried) == ("hi", (), {"messages": "none", "images": 3})


def test_a_file_without_any_of_the_columns_names_those_it_has(tmp_path):
    (tmp_path / "rows.csv").write_text("question,answer\na,b\n")
    with pytest.raises(InputError, match="has no column prompt; its columns are 'question, answer'"):
        read_dataset(tmp_path / "rows.csv", kind=None)


def test_addresses_that_hold_no_image_are_one_line():
    for data, said in (
        ("!!!!", "is no base64"),
        ("AAAA", "is in no format that can be read"),
        ("A" * (90 * 2**20), "64 MiB"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read_picture(f"data:image/png;base64,{data}")
        assert len(str(caught.value)) < 300
