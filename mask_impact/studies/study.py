"""Many prompts to many results: each written as soon as it is done, what failed recorded, what is done not done again.

A result is known again by a digest of everything that it depends on, so that a run can go on where another one ended, however
it ended. Prompts run in groups that follow from the list of jobs alone, so that a result has the same bits whichever of the
others were there already.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mask_impact.errors import OutputError
from mask_impact.models.loading import LoadedModel
from mask_impact.results.files import check_output
from mask_impact.results.records import Result
from mask_impact.results.store import Saved, load_result, save, stored_digest
from mask_impact.studies.batching import run_tasks
from mask_impact.studies.digest import digest
from mask_impact.studies.jobs import Job, result_name
from mask_impact.studies.progress import MAX_TOGETHER, ErrorLog, StudyObserver, Tally, run_blocks, task_of
from mask_impact.studies.sharing import Team

NOTHING: Mapping[str, Any] = MappingProxyType({})


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")  # a name may contain dots


def run_study(
    loaded: LoadedModel,
    jobs: Sequence[Job],
    team: Team,
    *,
    formats: Sequence[str] | None = None,
    resume: bool = False,
    beside: Mapping[str, Callable[[Result, Path], Any]] = NOTHING,
    command: str = "",
    observer: StudyObserver | None = None,
) -> Tally:
    """Run `jobs` and write {job name}_results for each into the team's folder; failures go to {team name}.errors.jsonl there.

    resume: leave out jobs whose complete result with the same digest is there. beside: what else is written of each result, by
    the suffix of a file that it always writes: functions of the result and its path without suffix. The first Ctrl-C (or
    SIGTERM) ends the study when the group at work is written, the second Ctrl-C at once.
    """
    observer = observer or StudyObserver()
    errors = ErrorLog(team.errors_path)
    results = _Results(loaded, jobs, team.folder, formats, beside, command)

    def run(group: Sequence[Job]) -> Tally:
        done = {job.name for job in group if resume and results.complete(job, observer.note)}
        tally = Tally(len(group), n_skipped=len(done))
        if len(done) == len(group):
            return tally
        for outcome in run_tasks(loaded, [task_of(job) for job in group], observer):
            job = outcome.task.key
            if job.name in done:  # ran along only for the others' sake
                continue
            saved = results.keep(job, outcome.result) if outcome.error is None else None
            if outcome.error is not None:
                errors.add(job, outcome.error)
            tally.count(outcome)
            observer.job_done(job, outcome, saved)
        return tally

    alone = team.size == 1  # others may have written results by now, which are counted when their groups are passed
    observer.study_begins(len(jobs), sum(map(results.has, jobs)) if alone and resume else 0)
    tally = run_blocks(team, _groups(jobs), run, observer, counted_at_once=alone)
    tally.n_jobs = len(jobs)  # where it was stopped, too
    return tally


def _digest(loaded: LoadedModel, job: Job) -> str:
    """Of what the numbers depend on, and of what is kept beside them."""
    if not job.carried:
        return digest(loaded, job)
    return hashlib.sha256(json.dumps([digest(loaded, job), job.carried], sort_keys=True).encode()).hexdigest()


class _Results:
    """Where the results of a study's jobs are: which are there, and writing the others."""

    def __init__(
        self,
        loaded: LoadedModel,
        jobs: Sequence[Job],
        folder: Path,
        formats: Sequence[str] | None,
        beside: Mapping[str, Callable[[Result, Path], Any]],
        command: str,
    ) -> None:
        self._formats, self._beside, self._command = formats, beside, command
        self._paths = {job.name: check_output(folder, result_name(job), ()) for job in jobs}
        self._digests = {job.name: _digest(loaded, job) for job in jobs}

    def has(self, job: Job) -> bool:
        """Whether the result of exactly this job is there, complete."""
        try:
            return stored_digest(self._paths[job.name], self._formats) == self._digests[job.name]
        except OutputError:
            return False

    def keep(self, job: Job, result: Result) -> Saved:
        """Writes a result, and what goes beside it."""
        path = self._paths[job.name]
        meta = {"command": self._command, "job": job.name, "digest": self._digests[job.name], "carried": job.carried}
        result = replace(result, meta=result.meta | meta)
        saved = save(result, path, self._formats)
        for write in self._beside.values():
            write(result, path)
        return saved

    def complete(self, job: Job, say: Callable[[str], Any]) -> bool:
        """Whether the result of exactly this job is there, with what goes beside it, which is written where it is not. say: is
        told where its files are damaged, so that the job is to be done again."""
        path = self._paths[job.name]
        missing = [write for suffix, write in self._beside.items() if not _with_suffix(path, suffix).exists()]
        try:
            if stored_digest(path, self._formats) != self._digests[job.name]:
                return False
            result = load_result(path) if missing else None
        except OutputError as error:
            say(f"{job.name} is done again: {error}")
            return False
        for write in missing:
            write(result, path)
        return True


def _groups(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Jobs that may share forward passes: neighbours, few where there are few jobs, so that several processes get some each."""
    size = min(MAX_TOGETHER, max(1, len(jobs) // 16))
    for first in range(0, len(jobs), size):
        yield jobs[first : first + size]
