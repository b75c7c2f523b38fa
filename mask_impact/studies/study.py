"""Many prompts to many results: each written as soon as it is done, what failed recorded, what is done not done again.

A result is known again by a digest of everything that it depends on, so that a run can go on where another one ended, however
it ended. Prompts run in groups that follow from the list of jobs alone, so that a result has the same bits whichever of the
others were there already.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mask_impact.errors import OutputError, WorkerError
from mask_impact.models.loading import LoadedModel
from mask_impact.results.files import check_output
from mask_impact.results.looked_files import DEFAULT_FORMATS
from mask_impact.results.meta import read_meta
from mask_impact.results.names import RESULT
from mask_impact.results.records import Result
from mask_impact.results.store import Saved, load_result, save, stored_digest
from mask_impact.results.table_files import beside as file_beside
from mask_impact.studies.batching import Outcome
from mask_impact.studies.crew import Block, Crew, ThisProcess
from mask_impact.studies.digest import Identity, digest
from mask_impact.studies.jobs import Job, result_name
from mask_impact.studies.looks import LOOKS, asked
from mask_impact.studies.progress import Course, ErrorLog, StudyObserver, Tally, run_blocks
from mask_impact.studies.writer import Writer, blocks_of

NOTHING: Mapping[str, Any] = MappingProxyType({})


def run_study(
    model: LoadedModel | Crew,
    jobs: Sequence[Job],
    writer: Writer,
    *,
    formats: Sequence[str] | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    beside: Mapping[str, Callable[[Result, Path], Any]] = NOTHING,
    command: str = "",
    observer: StudyObserver | None = None,
) -> Tally:
    """Run `jobs` and write {job name}_results for each into the writer's folder; failures go to {writer name}.errors.jsonl there.

    model: or who measures with it. resume: leave out jobs whose complete result with the same digest is there, and, but with
    retry_failed, those that ended their workers. beside: what else is written of each result, by the suffix of a file that it
    always writes: functions of the result and its path without suffix. The first Ctrl-C (or SIGTERM) ends the study when the
    groups at work are written, the second Ctrl-C at once.
    """
    observer, started = observer or StudyObserver(), time.perf_counter()
    crew = ThisProcess(model, observer) if isinstance(model, LoadedModel) else model
    groups = [*blocks_of(jobs, writer.shard)]
    own = {job.name: job for _, group in groups for job in group}
    results = _Results(crew.identity, [*own.values()], writer.folder, formats, beside, command)
    errors, tally, course = ErrorLog(writer.errors_path), Tally(len(own)), Course()
    left_out = _left_out(writer, results) if resume and not retry_failed else {}

    def blocks() -> Iterator[Block]:
        for number, group in groups:
            for entry in (left_out[job.name] for job in group if job.name in left_out):
                errors.repeat(entry)
                tally.failed.append(entry["name"])
            done = {job.name for job in group if resume and results.complete(job, observer.note)}
            tally.n_skipped += len(done)
            if wanted := frozenset(job.name for job in group) - done - {*left_out}:
                yield Block(number, tuple(group), wanted)

    observer.study_begins(len(own), sum(map(results.has, own.values())) if resume else 0)
    for _, done in run_blocks(crew, blocks(), None, observer, course):
        if done is None:
            continue
        writer.lease.check()
        job = own[done.name]
        saved = results.keep(job, done.content) if done.error is None else None
        if done.error is not None:
            errors.add(job, done.error, digest=results.digest_of(job.name))
            tally.failed.append(job.name)
        tally.count(done)
        observer.job_done(job, done, saved)
    order = {name: number for number, name in enumerate(own)}
    tally.failed.sort(key=order.__getitem__)
    tally.end(course.complete, time.perf_counter() - started, writer.errors_path)
    return tally


def _left_out(writer: Writer, results: "_Results") -> dict[str, dict[str, Any]]:
    """What an earlier run recorded of jobs that ended their workers, as long as they are the same."""
    found = {}
    for entry in writer.failed_before:
        digest_now = results.digest_of(entry.get("name"))
        if entry.get("error") == WorkerError.__name__ and digest_now is not None and entry.get("digest") == digest_now:
            found[entry["name"]] = entry
    return found


def _digest(model: Identity, job: Job) -> str:
    """Of what the numbers depend on, and of what is kept beside them."""
    if not job.carried:
        return digest(model, job)
    return hashlib.sha256(json.dumps([digest(model, job), job.carried], sort_keys=True).encode()).hexdigest()


class _Results:
    """Where the results of a study's jobs are: which are there, and writing the others."""

    def __init__(
        self,
        model: Identity,
        jobs: Sequence[Job],
        folder: Path,
        formats: Sequence[str] | None,
        beside: Mapping[str, Callable[[Result, Path], Any]],
        command: str,
    ) -> None:
        self._formats, self._beside, self._command = formats, beside, command
        self._paths = {job.name: check_output(folder, result_name(job), ()) for job in jobs}
        self._digests = {job.name: _digest(model, job) for job in jobs}

    def digest_of(self, name: Any) -> str | None:
        """The digest of the job of this name, None where there is none."""
        return self._digests.get(name) if isinstance(name, str) else None

    def has(self, job: Job) -> bool:
        """Whether the result of exactly this job is there, complete."""
        try:
            return self._is_there(job)
        except OutputError:
            return False

    def _is_there(self, job: Job) -> bool:
        """Whether its meta file has its digest, and all tables that belong to it are there. OutputError where one is not."""
        path = self._paths[job.name]
        if stored_digest(path, self._formats) != self._digests[job.name]:
            return False
        left_out = read_meta(file_beside(path, RESULT.main))["run"].get("left_out") or {}
        for name in {*asked(job.settings)} - {*left_out}:
            kind = LOOKS[name].kind
            for form in read_meta(file_beside(path, kind.main), kind.tables[0])["formats"]:
                if not file_beside(path, f"{kind.tables[0]}.{form}").is_file():
                    raise OutputError(f"{file_beside(path, f'{kind.tables[0]}.{form}')} is not there")
        return True

    def keep(self, job: Job, outcome: Outcome) -> Saved:
        """Writes a result, and what goes beside it. The result's meta file comes last: by it the job is known as done."""
        path, result = self._paths[job.name], outcome.result
        meta = {"command": self._command, "job": job.name, "digest": self._digests[job.name], "carried": job.carried}
        meta["notices"] = [
            *result.meta.get("notices", ()),
            *(f"No {one}: {why}" for one, why in outcome.left_out.items()),
        ]
        meta |= {"left_out": dict(outcome.left_out)} if outcome.left_out else {}
        result = replace(result, meta=result.meta | meta)
        for name, found in outcome.looked.items():
            LOOKS[name].save(found, path, self._formats or DEFAULT_FORMATS, self._command)
        saved = save(result, path, self._formats)
        for write in self._beside.values():
            write(result, path)
        return saved

    def complete(self, job: Job, say: Callable[[str], Any]) -> bool:
        """Whether the result of exactly this job is there, with what goes beside it, which is written where it is not. say: is
        told where its files are damaged, so that the job is to be done again."""
        path = self._paths[job.name]
        missing = [write for suffix, write in self._beside.items() if not file_beside(path, suffix).exists()]
        try:
            if not self._is_there(job):
                return False
            result = load_result(path) if missing else None
        except OutputError as error:
            say(f"{job.name} is done again: {error}")
            return False
        for write in missing:
            write(result, path)
        return True
