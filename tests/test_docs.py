"""The documentation is true: its commands and snippets run as they stand; outputs, names, tables and messages are the real ones.

Each document's blocks run in their order in one empty folder (with a copy of what they name), on the demo models and without a
hub. `documents.NOT_RUN` says what is not run here, why, and how it is checked.
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import shutil

import pytest
import yaml
from documents import (
    REPOSITORY,
    Block,
    blocks_of,
    check_yaml,
    commands_of,
    doc_parts,
    read,
    run_command,
    section,
    table_rows,
    update_docs,
)
from packaging.requirements import Requirement

import mask_impact
from mask_impact.commands import main as mask_impact_command
from mask_impact.errors import UsageError
from mask_impact.models import loading, sources

DOCUMENTS = update_docs.documents()
WORDS_BEFORE = 60  # words of README.md within which the first command stands
MOST_WORDS = {"README.md": 1200, "VL_QUICKSTART.md": 900, "VL_IMPLEMENTATION.md": 4000}


# --- running the documents ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch):
    """Models of the hub are neither in the cache nor downloadable, so the demo stands in for the default."""
    monkeypatch.setattr(sources.hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sources, "_is_cached", lambda *args, **kwargs: False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in that holds only what the documents name: a demo checkpoint, the example and the configurations."""
    shutil.copytree(REPOSITORY / "mask_impact" / "demo" / "text", tmp_path / "mask_impact" / "demo" / "text")
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    for config in REPOSITORY.glob("prompts_config*.yaml"):
        shutil.copy(config, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if "```" in read(name)])
def test_every_command_and_snippet_runs_as_it_stands(document, folder, no_hub):
    """In their order, in one namespace, as a reader would. Outputs that are shown are compared with the real ones."""
    printed, namespace = {}, {"__name__": "snippet"}
    for block in blocks_of(read(document)):
        where = f"{document}, line {block.line}"
        try:
            if block.language == "bash":
                for _line, words in commands_of(block):
                    printed[shlex.join(words)] = run_command(words)
            elif block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block.text, where, "exec"), namespace)
            elif block.language == "yaml":
                check_yaml(block.text)
        except BaseException as error:
            error.add_note(where)
            raise
    for match in update_docs.OUTPUT.finditer(read(document)):
        command, after, word = update_docs.filtered(match["command"].rpartition(" && ")[2])
        real = update_docs.matching(printed[shlex.join(shlex.split(command))], word, after)
        assert essence(match["body"]) == essence(real), f"{document}: python tools/update_docs.py --outputs"


def essence(output):
    """What does not differ between machines: all lines but those of tables, without their numbers, widths and device.

    The demo runs in bfloat16, whose last digit depends on the kernels of the processor, and with it the order of a ranking, and
    the sign of a number that is written with an exponent, which is near zero.
    """
    lines = [line for line in output.splitlines() if not re.match(r"\s+\d+\s", line)]
    lines = [re.sub(r"-?\d\.?\d*e-\d+|-?0\.000\d+|\d[\w.,+-]*", "#", line) for line in lines]
    return [re.sub(r" +", " ", re.sub(r"\bcpu\b|\bcuda:#", "DEVICE", line)) for line in lines]


def test_every_shown_output_has_its_command_in_the_same_document():
    """Else nothing would compare it with the real one."""
    for document in DOCUMENTS:
        text = read(document)
        run = {
            shlex.join(words)
            for block in blocks_of(text)
            if block.language == "bash"
            for _, words in commands_of(block)
        }
        for match in update_docs.OUTPUT.finditer(text):
            command, _, _ = update_docs.filtered(match["command"].rpartition(" && ")[2])
            assert shlex.join(shlex.split(command)) in run, f"{document}: {command}"
            assert match["body"].strip(), f"{document}: nothing is shown for {command}"


def test_the_two_commands_of_a_fresh_machine_come_first():
    """The first screen of README.md: what it is in a few words, then what to type."""
    text = read("README.md")
    first, *_ = blocks_of(text)
    install = "python -m pip install -r requirements.txt"
    assert first.text.splitlines() == [
        f'{install} && python mask_impact_vl.py --prompt "What is 2+2?" --num-tokens 3',
        f"{install} && python -m pytest",
    ]
    assert len(text.partition("```")[0].split()) <= WORDS_BEFORE


def test_ci_finds_exactly_these_two_commands():
    (pattern,) = re.findall(r"grep -E '(\^python.+?)' README\.md", read(".ci/run"))
    assert len(re.findall(pattern, read("README.md"), re.MULTILINE)) == 2


@pytest.mark.parametrize("document", MOST_WORDS)
def test_the_pages_that_everybody_reads_stay_short(document):
    assert len(read(document).split()) <= MOST_WORDS[document]


def test_commands_are_read_as_a_shell_reads_them():
    block = Block("bash", 'one "a b" && two # comment\n\nthree \\\n  more\nfour "a\nb"', 10)
    assert commands_of(block) == [
        (10, ["one", "a b"]), (10, ["two"]), (12, ["three", "more"]), (14, ["four", "a\nb"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "python mask_impact_vl.py --device cuda --no-such-flag",
        "mask-impact run --device cuda --no-such-flag",
        "mask-impact frobnicate",
        "mask-impact report nowhere",
        "python -m mask_impact report nowhere",
        "accelerate launch -m mask_impact study FILE --no-such-flag",
        "python benchmarks/bench_store.py --no-such-flag",
        "python -m pip install -r nowhere.txt",
        "python -m pip install left-pad",
        "python -m pytest tests/test_nowhere.py",
        "python nowhere.py",
        "make",
    ],
)
def test_a_command_that_would_not_work_is_found(words):
    with pytest.raises((AssertionError, UsageError, SystemExit, IndexError)):
        run_command(words.split())


@pytest.mark.parametrize(
    "text",
    ["prompts: [{name: a, promt: b}]", "flows: [{source: a}]", "group: 5", "prompts: [{name: a, prompt: b}]\nx: 1"],
)
def test_yaml_that_would_not_be_read_is_found(text, folder):
    with pytest.raises((AssertionError, mask_impact.MaskImpactError)):
        check_yaml(text)


def test_outputs_can_be_cut_out_by_a_word_and_the_lines_behind_it():
    assert update_docs.filtered('a "b c" | grep -A 2 "x y"') == ('a "b c"', 2, "x y")
    assert update_docs.filtered("a | grep x") == ("a", 0, "x")
    assert update_docs.filtered("a") == ("a", 0, "")
    assert update_docs.matching("a\nb\nc\na\n", "a", 1) == "a\nb\na\n"


# --- what is generated ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_generated_parts_are_current(document):
    """Help texts, tables, signatures; `python tools/update_docs.py` mends it."""
    assert update_docs.updated(read(document)) == read(document)


def test_everything_that_can_be_generated_is_shown():
    shown = {match["name"] for document in DOCUMENTS for match in update_docs.BLOCK.finditer(read(document))}
    assert shown == set(doc_parts.GENERATORS)


def test_the_settings_table_names_flags_that_the_commands_have():
    """The table comes from the settings, the help from the parsers: a flag that is in one of them only would be found."""
    reference, rows = (
        read("docs/reference/command-line.md"),
        table_rows(read("docs/reference/settings.md"), ["setting", "flag"]),
    )
    assert len(rows) >= 20
    for setting, flag, *_, where in rows:
        long = flag.split("`")[-2]
        for command in where.partition(";")[0].split(", "):
            if (setting.strip("`"), command) == ("formats", "study"):
                continue  # of files of each prompt, which only --config of the scripts writes
            assert re.search(rf"\s{long}\b", section(reference, f"mask-impact {command}")), f"{setting} of {command}"


def test_the_example_configuration_has_every_key():
    data = yaml.safe_load(read("prompts_config_vl.yaml"))
    keys = {*data, *data["model"], *data["defaults"]}
    rows = table_rows(read("docs/reference/settings.md"), ["setting", "flag"])
    wanted = {cells[0].strip("`") for cells in rows if "YAML" in cells[-1]} - {"model"}
    assert wanted <= keys


def test_the_python_reference_has_every_public_name():
    headings = re.findall(r"^## (\w+)$", read("docs/reference/python.md"), re.MULTILINE)
    assert headings == list(mask_impact.__all__)


def test_the_rooms_are_those_that_imports_are_held_to_and_the_decision_names_them_in_their_order():
    assert importlib.import_module("test_structure").ROOMS == doc_parts.ROOMS
    (decision,) = re.findall(r"imports run one way: ([^.]+)\.", " ".join(read("VL_IMPLEMENTATION.md").split()))
    assert tuple(decision.split(", ")) == doc_parts.ROOMS


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Short. More.", "Short"),
        ("Reads a.b files", "Reads a.b files"),
        (f"One: {'two ' * 20}(a, b, {'c' * 30}), three", "One"),
        (f"One, {'two ' * 22}three, four and five", f"One, {'two ' * 22}three"),
    ],
)
def test_a_module_is_told_by_the_first_sentence_of_its_docstring(tmp_path, line, said):
    """And a long sentence by what stands before a comma or colon outside of parentheses."""
    (tmp_path / "module.py").write_text(f'"""{line}\n\nMore.\n"""\n')
    assert doc_parts.about(tmp_path / "module.py") == said


# --- what names something -------------------------------------------------------------------------------------------------


def anchors(text):
    """Anchors of a document's headings, as GitHub makes them; the site makes the same of these headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_files_lead_somewhere(document):
    here = (REPOSITORY / document).parent
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", without_blocks(read(document))):
        path = (here / target).resolve() if target else REPOSITORY / document
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


def without_blocks(text):
    """The document without its fenced blocks and code spans, which may look like links."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_files_that_are_named_exist(document):
    """Paths in back-quotes that begin with a folder of the project, or are a script at its root."""
    named = re.findall(
        r"[`(]((?:mask_impact|tests|tools|benchmarks|examples|docs|\.ci)/[\w./-]*|\w+\.(?:py|yaml|md))[`)]",
        read(document),
    )
    roots = (REPOSITORY, REPOSITORY / "mask_impact", REPOSITORY / "tests", (REPOSITORY / document).parent)
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    assert [name for name in missing if "NAME" not in name and name not in MADE_BY_SNIPPETS] == []


MADE_BY_SNIPPETS = {"groups.yaml", "flows.yaml", "FILE.yaml"}
NAMES = re.compile(rf"`(?:mask_impact\.)?((?:{'|'.join(doc_parts.ROOMS)})(?:\.(?!py`)\w+)+)`")


def check_name(name):
    """A module of the package, or something in one; AttributeError, ModuleNotFoundError."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(".".join(["mask_impact", *parts[:end]]))
            return functools.reduce(getattr, parts[end:], module)
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_names_of_the_package_exist(document):
    assert [name for name in NAMES.findall(read(document)) if check_name(name) is None] == []


def test_the_walk_goes_through_every_room_that_a_run_does():
    """From the command to the page; a name that is not there would be found."""
    names = NAMES.findall(section(read("VL_IMPLEMENTATION.md"), "The walk"))
    assert len(set(names)) >= 40
    assert {name.partition(".")[0] for name in names} == set(doc_parts.ROOMS) - {"errors", "demo", "app"}
    with pytest.raises(AttributeError):
        check_name("commands.run.ran")
    with pytest.raises(AttributeError):
        check_name("engine.nowhere")


@functools.cache
def messages_of_the_package():
    """Every string of the package, with … for what is filled in."""
    texts = []
    for path in (REPOSITORY / "mask_impact").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def unknown_messages(messages):
    """Those that no string of the package says."""
    texts = messages_of_the_package()
    patterns = {message: ".*?".join(map(re.escape, message.split("…"))) for message in messages}
    return [message for message, pattern in patterns.items() if not any(re.search(pattern, text) for text in texts)]


def test_messages_in_troubleshooting_tables_are_the_program_s():
    rows = [row for document in DOCUMENTS for row in table_rows(read(document), ["message", "what to do"])]
    messages = [cells[0].strip("`") for cells in rows]
    assert len(messages) >= 30
    assert unknown_messages(messages) == []
    assert unknown_messages(["the model is tired of …"]) == ["the model is tired of …"]


# --- files and specs ------------------------------------------------------------------------------------------------------


def columns_below(heading):
    return [cells[0].strip("`") for cells in table_rows(section(read("docs/reference/files.md"), heading), ["column"])]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the files of a run with effects, a knockout, answers without some tokens, pixels and a dataset."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "data.jsonl").write_text('{"prompt": "What is 2+2?", "n": 1}\n{"prompt": ""}\n')
    image = ["-i", str(REPOSITORY / "examples" / "shapes.png")]
    common = ["-m", "demo", "--output-dir", str(folder), "-q"]
    question = "What color is the star?"
    for words in (
        ["run", question, *image, "--effect", "--window", "all", "--variants", "full", "--formats", "csv", *common],
        ["explain", question, *image, *common],
        ["knockout", question, *image, *common],
        ["without", question, "star", *image, *common],
        ["pixels", question, *image, *common],
        ["deepstack", question, *image, *common],
        ["tower", question, *image, *common],
        ["study", str(folder / "data.jsonl"), *common],
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = mask_impact_command.main(words)
        assert code == (3 if words[0] == "study" else 0)  # one of its rows is no prompt
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["csv", "effect.csv", "flows.csv", "answer.csv", "patches.csv", "deepstack.csv", "tower.csv", "tower_effects.csv"],
)
def test_the_columns_of_tables_are_those_that_are_documented(written, name):
    (head, *_) = (written / f"result.{name}").read_text(encoding="utf-8").splitlines()
    assert columns_below(f"NAME.{name}") == head.replace('"', "").split(",")


@pytest.mark.slow
def test_the_columns_of_a_dataset_are_those_that_are_documented(written):
    from pyarrow import parquet

    names = parquet.read_schema(written / "data" / "impact" / "part-000000.parquet").names
    assert sorted(names) == sorted([*columns_below("NAME.csv"), *columns_below("NAME/impact")])
    names = parquet.read_schema(written / "data" / "prompts" / "part-000000.parquet").names
    assert names == columns_below("NAME/prompts")


@pytest.mark.slow
def test_the_keys_of_json_files_are_those_that_are_documented(written):
    text = read("docs/reference/files.md")
    meta = json.loads((written / "result.meta.json").read_text(encoding="utf-8"))
    keys = [cells[0].strip("`") for cells in table_rows(section(text, "NAME.meta.json"), ["key", "unit"])]
    assert keys == [*meta, *meta["steps"][0]]
    said = set(re.findall(r"`(\w+)`", section(text, "NAME.meta.json")))
    assert set(meta["run"]) - said == NOT_LISTED
    assert {*meta["steps"][0]["candidates"][0], *meta["steps"][0]["effect"], *meta["tokens"][0]} - said <= {
        "position",
        "crc32",
        "rest_crc32",
    }
    answers = json.loads((written / "result.whatif.json").read_text(encoding="utf-8"))
    assert [cells[0].strip("`") for cells in table_rows(section(text, "NAME.whatif.json"), ["key"])] == list(answers)
    said = set(re.findall(r"`(\w+)`", section(text, "NAME.whatif.json")))
    assert {*answers["others"][0], *answers["others"][0]["tokens"][0]} <= said
    explained = json.loads((written / "result.answer.meta.json").read_text(encoding="utf-8"))
    assert set(explained) <= set(re.findall(r"`(\w+)`", section(text, "NAME.answer.csv")))
    flows = json.loads((written / "result.flows.meta.json").read_text(encoding="utf-8"))
    assert set(flows) <= set(re.findall(r"`(\w+)`", section(text, "NAME.flows.csv")))
    patches = json.loads((written / "result.patches.meta.json").read_text(encoding="utf-8"))
    assert set(patches) <= set(re.findall(r"`(\w+)`", section(text, "NAME.patches.csv")))
    deepstack = json.loads((written / "result.deepstack.meta.json").read_text(encoding="utf-8"))
    assert set(deepstack) <= set(re.findall(r"`(\w+)`", section(text, "NAME.deepstack.csv")))
    tower = json.loads((written / "result.tower.meta.json").read_text(encoding="utf-8"))
    assert set(tower) <= set(re.findall(r"`(\w+)`", section(text, "NAME.tower_effects.csv")))
    (error,) = map(json.loads, (written / "data.errors.jsonl").read_text(encoding="utf-8").splitlines())
    assert set(error) <= set(re.findall(r"`(\w+)`", section(text, "NAME.errors.jsonl")))


# Keys of `run` that "among others" stands for.
NOT_LISTED = {"tool_version", "model_class", "device_name", "max_image_resolution", "batch_size"}


@pytest.mark.slow
def test_the_keys_that_json_on_stdout_has_are_those_that_are_documented(written):
    result, picture = str(written / "result"), str(REPOSITORY / "examples" / "shapes.png")
    common = ["-m", "demo", "--output-dir", str(written), "-o", "as_json"]
    commands = {
        "run": ["run", "What is 2+2?", "--effect", "--window", "all", *common],
        "explain": ["explain", "What is 2+2?", *common],
        "evidence": ["evidence", "What is 2+2?", *common],
        "knockout": ["knockout", "What color is the star?", "-i", picture, *common],
        "without": ["without", "What is 2+2?", "+", *common],
        "pixels": ["pixels", "What color is the star?", "-i", picture, *common],
        "deepstack": ["deepstack", "What color is the star?", "-i", picture, "--no-answers", *common],
        "tower": ["tower", "What color is the star?", "-i", picture, *common],
        "study": ["study", str(written / "data.jsonl"), *common],
        "study report": ["study", "report", str(written / "data")],
        "top": ["top", result],
        "report": ["report", result, "--output", str(written / "page.html")],
        "compare": ["compare", result, str(written / "as_json"), "--no-page"],
        "models": ["models"],
        "models MODEL": ["models", "demo"],
        "verify": ["verify", "demo", "-k", "1"],
    }
    documented = table_rows(section(read("docs/reference/files.md"), "What --json prints"), ["command", "keys"])
    assert [cells[0].strip("`") for cells in documented] == list(commands)
    for (name, words), (_, keys) in zip(commands.items(), documented, strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            mask_impact_command.main([*words, "--json"])
        entry = json.loads(printed.getvalue())
        assert list(entry if isinstance(entry, dict) else entry[0]) == re.findall(r"`(\w+)`", keys), name
        steps = {*entry["steps"][0]} if "steps" in entry else set()
        assert steps <= set(re.findall(r"`(\w+)`", section(read("docs/reference/files.md"), "What --json prints"))), (
            name
        )
        assert name != "run" or len(entry["steps"][0]["effects"]) > 1


def test_every_way_to_name_tokens_that_is_listed_is_understood():
    from PIL import Image

    from mask_impact.prompts.encoding import encode, layout_of
    from mask_impact.prompts.images import read_pictures
    from mask_impact.prompts.videos import read_video

    turns = [
        ("system", "Say a word."),
        ("user", "<image><video>What color is the star? A cat had a hat."),
        ("assistant", "I say"),
    ]
    prompt = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns).removesuffix("<|im_end|>\n")
    loaded = loading.load("demo")
    with Image.open(REPOSITORY / "examples" / "shapes.png") as image:
        clip = read_video(REPOSITORY / "examples" / "shapes.gif", fps=1)
        layout = layout_of(loaded, encode(loaded, prompt, [*read_pictures([image]), clip]))
    specs = [cells[0].strip("`") for cells in table_rows(read("docs/reference/naming-tokens.md"), ["part"])]
    assert len(specs) >= 15
    positions = {spec: layout.resolve(spec) for spec in specs}
    assert set(positions["star + color"]) == {*positions["star"], *layout.resolve("color")}
    assert positions["image 0 rows 1-2 columns 3"] == tuple(sorted(positions["image 0 rows 1-2 columns 3"]))
    with pytest.raises(mask_impact.MaskImpactError):
        layout.resolve("planet")


# --- the rest -------------------------------------------------------------------------------------------------------------


def test_the_version_is_one():
    citation = yaml.safe_load(read("CITATION.cff"))
    (newest, *_) = re.findall(r"^## (\S+) \((\S+)\)$", read("CHANGELOG.md"), re.MULTILINE)
    assert (citation["version"], str(citation["date-released"])) == newest
    assert citation["version"] == mask_impact.__version__


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    """What mkdocs warns of (a link or an anchor that leads nowhere, a page that is not in the navigation) ends a strict build."""
    pytest.importorskip("material", reason="mkdocs-material is not installed (docs/requirements.txt)")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")
    }
    assert len(pages) == len(DOCUMENTS) + 1  # and the one for what is not found
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"(https?:)?//", page)
        assert loaded == [], name


def test_pins_of_the_site_are_exact():
    lines = [line for line in read("docs/requirements.txt").splitlines() if line and not line.startswith("#")]
    assert {Requirement(line).name for line in lines} == {"mkdocs", "mkdocs-material"}
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines)
