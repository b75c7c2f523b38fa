"""A dataset to parts of Parquet, each written as soon as it is done and known again by its digest."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mask_impact.errors import InputError
from mask_impact.models.loading import LoadedModel
from mask_impact.results.dataset_answers import card_table
from mask_impact.results.distance_files import write_tables
from mask_impact.results.effect_tables import effect_table
from mask_impact.results.explanation_tables import explanation_table, matrix_table, routes_table
from mask_impact.results.files import check_output, is_regular, output_error, write_files
from mask_impact.results.inputs import TABLE, open_file
from mask_impact.results.records import Result
from mask_impact.results.table_files import clean_text, one_line
from mask_impact.results.tables import to_dataset_table, with_prompt
from mask_impact.studies.batching import run_tasks
from mask_impact.studies.digest import digest
from mask_impact.studies.jobs import Job, Problem
from mask_impact.studies.parts import HOW, KINDS, RUN, part_of, parts_in
from mask_impact.studies.progress import MAX_TOGETHER, ErrorLog, StudyObserver, Tally, run_blocks, task_of
from mask_impact.studies.sharing import Team


def run_dataset(
    loaded: LoadedModel,
    rows: Iterable[Job | Problem],
    team: Team,
    *,
    n_rows: int | None = None,
    reduce: str = "summary",
    resume: bool = False,
    observer: StudyObserver | None = None,
) -> Tally:
    """Run the jobs of a dataset, read as they are needed, and write part-*.parquet of MAX_TOGETHER rows each into a folder.

    The folder is called as the team is, in the team's folder. Rows that are no jobs, and jobs that fail, go to
    {team name}.errors.jsonl. Effects and what answers used go to folders beside it, see `part_of`. reduce: see
    `tables.to_dataset_table`. n_rows: about how many rows there are. resume: leave out
    parts that are complete. Ctrl-C as in `run_study`.
    """
    observer = observer or StudyObserver()
    errors = ErrorLog(team.errors_path)
    folder = check_output(team.folder, team.name, ())
    _make_folder(folder)
    n_parts, old = 0, [*parts_in(folder)] if team.fresh and team.size == 1 else []

    def parts() -> Iterator[_Part]:
        nonlocal n_parts
        remaining = iter(rows)
        while block := list(islice(remaining, MAX_TOGETHER)):
            n_parts += 1
            yield _Part(folder / f"part-{n_parts - 1:06d}.parquet", block, reduce)

    def run(part: _Part) -> Tally:
        for problem in part.problems:
            errors.add_problem(problem)
            observer.row_failed(problem)
        part_digest = part.digest(loaded)
        failures = part.failures_there(part_digest, observer.note) if resume else None
        if failures is None:
            tally = _run_part(loaded, part, part_digest, errors, observer, old)
        else:
            for failure in failures:
                errors.repeat(failure)
            names = [failure["name"] for failure in failures]
            tally = Tally(len(part.jobs), n_skipped=len(part.jobs) - len(names), failed=names)
        tally.n_jobs += len(part.problems)
        tally.failed = [*(problem.name or f"row {problem.row}" for problem in part.problems), *tally.failed]
        return tally

    observer.study_begins(n_rows, 0)
    tally = run_blocks(team, parts(), run, observer, counted_at_once=False)
    if team.leads and team.complete:
        _remove_parts_from(folder, n_parts)
    return tally


class _Part:
    """A file of a dataset's results: rows that run together, and how the file is known again."""

    def __init__(self, path: Path, rows: Sequence[Job | Problem], reduce: str) -> None:
        self.path, self.reduce = path, reduce
        self.jobs = [row for row in rows if isinstance(row, Job)]
        self.problems = [row for row in rows if isinstance(row, Problem)]

    def __len__(self) -> int:
        return len(self.jobs) + len(self.problems)

    def digest(self, loaded: LoadedModel) -> str:
        """SHA-256 of all that the file depends on."""
        ingredients = [[job.name, digest(loaded, job), _as_json(job.carried)] for job in self.jobs]
        return hashlib.sha256(json.dumps([ingredients, self.reduce]).encode()).hexdigest()

    def failures_there(self, expected: str, say: Callable[[str], Any]) -> list[dict[str, Any]] | None:
        """What is recorded of the jobs that failed, where a file with this digest is there; None where the part is to be run.

        A job that failed for what it is fails again, as long as its digest is the same; for another reason it may not. say: is
        told where the file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with open_file(self.path, TABLE) as file:
                found = pq.read_schema(file).metadata or {}
            if found.get(b"mask_impact_digest") != expected.encode():
                return None
            failures = json.loads(found.get(b"mask_impact_failures", b"[]"))
            if not isinstance(failures, list):
                raise ValueError("mask_impact_failures is no list")
            names = [(failure["name"], failure["error"]) for failure in failures]
            if not {name for name, _ in names} <= {job.name for job in self.jobs}:
                raise ValueError("mask_impact_failures has a name that is none of its prompts'")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError, pa.ArrowException) as error:
            say(f"{self.path} is done again: it cannot be read ({one_line(error)})")
            return None
        return failures if all(error == InputError.__name__ for _, error in names) else None

    def write(
        self, tables: Mapping[str, Sequence[Any]], part_digest: str, failures: Sequence[dict[str, Any]], model: str
    ) -> None:
        """The tables of the jobs that did not fail, in their order, by KINDS; all or nothing. Distances come last: by their file
        the part is known again."""
        metadata = {"mask_impact_digest": part_digest, "mask_impact_failures": json.dumps(failures)}
        metadata[RUN] = json.dumps(
            {"model": model, "reduce": self.reduce}
            | {name: getattr(self.jobs[0].settings, name) for name in HOW if self.jobs}
        )
        writers, empty = {}, []
        for kind, of_kind in reversed(tables.items()):
            path = part_of(self.path, kind)
            if of_kind:
                _make_folder(path.parent)
                writers[path] = lambda file, of_kind=of_kind: write_tables(
                    (one.replace_schema_metadata(metadata) for one in of_kind), file
                )
            elif is_regular(path):
                empty.append(path)
        if writers:
            write_files(writers, empty)
        else:
            for path in empty:
                path.unlink(missing_ok=True)


def _run_part(
    loaded: LoadedModel, part: _Part, part_digest: str, errors: ErrorLog, observer: StudyObserver, old: list[Path]
) -> Tally:
    """old: parts of an earlier run, which go when there is something to take their place."""
    tally, failures = Tally(len(part.jobs)), []
    tables: dict[str, dict[str, Any]] = {}
    for outcome in run_tasks(loaded, [task_of(job) for job in part.jobs], observer):
        job = outcome.task.key
        if outcome.error is None:
            tables[job.name] = _tables_of(outcome.result, job, part.reduce)
        else:
            failures.append(errors.add(job, outcome.error))
        tally.count(outcome)
        observer.job_done(job, outcome, None)
    done = [tables[job.name] for job in part.jobs if job.name in tables]
    while old:
        old.pop().unlink(missing_ok=True)
    part.write({kind: [one[kind] for one in done if kind in one] for kind in KINDS}, part_digest, failures, loaded.name)
    return tally


def _tables_of(result: Result, job: Job, reduce: str) -> dict[str, Any]:
    """The tables of one prompt, by KINDS; those of what was not asked for are left out."""
    carried = _as_json(job.carried)

    def named(table: Any) -> Any:
        return with_prompt(table, job.name, result.generated_text, carried)

    tables = {"": to_dataset_table(result, job.name, carried, reduce)}
    if result.has_effects:
        tables["effect"] = named(effect_table(result, [clean_text(text) for text in result.tokens.texts]))
    if result.answer is not None:
        tables["answer"] = named(explanation_table(result.answer))
        tables["card"] = named(card_table(result.answer))
        if any(target.heads is not None for target in result.answer.targets):
            tables["routes"] = named(routes_table(result.answer))
        if result.answer.matrix is not None:
            tables["matrix"] = named(matrix_table(result.answer))
    return tables


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def _as_json(carried: dict[str, Any]) -> str:
    return json.dumps(carried, ensure_ascii=False, sort_keys=True, default=str) if carried else ""


def _remove_parts_from(folder: Path, number: int) -> None:
    """Parts of an earlier and longer dataset of that name."""
    for path in parts_in(folder):
        if path.stem.removeprefix("part-").isdigit() and int(path.stem.removeprefix("part-")) >= number:
            path.unlink()
