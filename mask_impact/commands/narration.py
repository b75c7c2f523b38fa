"""What a run prints while it goes on: lines on any stream, and bars on a terminal. Knows nothing of models or files."""

import sys
import time
from collections.abc import Callable
from typing import Any

from mask_impact.commands.console import remark
from mask_impact.errors import told
from mask_impact.views.text import quoted

SECONDS_BETWEEN_LINES = 10.0  # where no bar is drawn


def silence(text: str) -> None:
    """Prints nothing."""


class Progress:
    """A tqdm bar on stderr over the layers of all tokens; on anything but a terminal a line per token.

    Use as a context manager, so that the bar is wiped off whatever happens. Does what an Observer of `analyses` does.
    """

    def __init__(self, quiet: bool, verbose: bool = False) -> None:
        self.quiet, self._verbose = quiet, verbose
        self.on_begin: Callable[[int], None] = lambda n_tokens: None
        self._bar = self._effects = None
        self._n_layers = self._n_steps = self._step = self._n_effects = self._n_effects_done = 0
        self._said_at = self._started_at = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close_bar()

    def note(self, text: str) -> None:
        self.__exit__()  # a bar that is being drawn would run into the line
        if not self.quiet:
            remark(text)

    def detail(self, text: str) -> None:
        """A remark that only --verbose shows."""
        if self._verbose:
            self.note(text)

    def begin(self, n_tokens: int, n_layers: int, n_steps: int) -> None:
        self._close_bar()
        if not self._n_layers:  # not again after running out of memory
            self.on_begin(n_tokens)
        self._n_layers, self._n_steps, self._step = n_layers, n_steps, 0
        if not self.quiet and sys.stderr.isatty():
            self._bar = self._make_bar(desc=self._label(0, 0), total=n_steps * n_layers, unit="layer", leave=False)
        else:
            self._say_step(self._label(0, 0))

    def layer_done(self, step: int, layer: int) -> None:
        """Layers without an attention are not told of: the bar jumps over them."""
        last = layer == self._n_layers - 1
        if self._bar is None:
            if step > self._step:  # not before: whether there is a next step is known when it begins
                self._say_step(self._label(step, 0))
        elif not (last and step == self._n_steps - 1):
            self._bar.set_description_str(
                self._label(step + 1, 0) if last else self._label(step, layer + 1), refresh=False
            )
            self._bar.update(step * self._n_layers + layer + 1 - self._bar.n)
        self._step = step

    def effects_begin(self, step: int, n_variants: int) -> None:
        self._n_effects, self._n_effects_done, self._said_at = n_variants, 0, time.monotonic()
        label = f"Effect on the answer (token {step + 1} of at most {self._n_steps})"
        if not self.quiet and sys.stderr.isatty():
            self._effects = self._make_bar(desc=label, total=n_variants, unit="effect", position=1, leave=False)
        else:
            self._say_step(f"{label}: {n_variants:,} to measure")

    def effects_done(self, n_variants: int) -> None:
        self._n_effects_done += n_variants
        if self._effects is not None:
            self._effects.update(n_variants)
            if self._effects.n >= self._effects.total:
                self._close_effects()
        elif time.monotonic() - self._said_at >= SECONDS_BETWEEN_LINES:
            self._said_at = time.monotonic()
            self._say_step(f"{self._n_effects_done:,} of {self._n_effects:,} are measured")

    def answers_begin(self, n_answers: int) -> None:
        if not self.quiet and sys.stderr.isatty():
            self._bar = self._make_bar(desc="Answers", total=n_answers, unit="answer", leave=False)
        else:
            self._say_step(f"Generating {n_answers} answers ...")

    def answer_done(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def explaining(self, n_targets: int, budget: int) -> None:
        self._close_bar()
        if not self.quiet and sys.stderr.isatty():
            how = "{l_bar}{bar}| {n:.0f} of at most {total} forward passes [{elapsed}<{remaining}]"
            self._bar = self._make_bar(
                desc="What the answer used", total=n_targets * budget, bar_format=how, leave=False
            )
        else:
            each = f"{budget} forward passes of the prompt" + f" for each of {n_targets} targets" * (n_targets > 1)
            self._say_step(f"Hiding what the answer may have used: at most {each} ...")

    def forwards_done(self, forwards: float) -> None:
        if self._bar is not None:
            self._bar.update(min(forwards, self._bar.total - self._bar.n))

    def changing(self, what: str, n_most: int) -> None:
        self._close_bar()
        self._n_effects, self._n_effects_done, self._said_at = n_most, 0, time.monotonic()
        self._started_at = self._said_at
        if not self.quiet and sys.stderr.isatty():
            how = "{l_bar}{bar}| {n} of at most {total} runs [{elapsed}<{remaining}]"
            self._bar = self._make_bar(desc=what, total=n_most, bar_format=how, leave=False)
        else:
            self._say_step(f"{what}: at most {n_most:,} runs ...")

    def changed(self, n: int) -> None:
        self._n_effects_done += n
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(n)
        elif now - self._said_at >= SECONDS_BETWEEN_LINES:
            self._said_at = now
            left = (now - self._started_at) * (self._n_effects / self._n_effects_done - 1)
            self._say_step(f"{self._n_effects_done:,} of at most {self._n_effects:,} runs, about {left:.0f} s left")

    def all_changed(self) -> None:
        self._close_bar()

    def explained(self) -> None:
        self._close_bar()

    def _close_effects(self) -> None:
        if self._effects is not None:
            self._effects.close()
            self._effects = None

    def _say_step(self, label: str) -> None:
        if not self.quiet:
            remark(label)

    def _close_bar(self) -> None:
        self._close_effects()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _make_bar(self, **settings: Any):
        from tqdm import tqdm

        return tqdm(**settings)

    def _label(self, step: int, layer: int) -> str:
        return f"Processing layer {layer}/{self._n_layers - 1}... (token {step + 1} of at most {self._n_steps})"


def _prompts(n: int | None) -> str:
    return "1 prompt" if n == 1 else f"{n} prompts"


def forecast_lines(found: Any) -> list[str]:
    """What a study is going to take, in words."""
    counted = f"{_prompts(found.n_prompts)}, with {found.n_images} image{'s' * (found.n_images != 1)}"
    lines = [counted + (f"; {found.n_wrong} can't be run:" if found.n_wrong else "")]
    lines += [f"  {told(problem)}" for problem in found.problems]
    lines += [f"{_prompts(n)} of the first {found.n_sampled}: {told(why)}" for why, n in found.left_out.items()]
    if found.n_sampled:
        seen = f" (from the first {found.n_sampled})" if found.n_sampled < found.n_prompts else ""
        lines += [
            f"about {found.forwards:.1f} forward passes of {found.n_tokens:.0f} tokens for each, "
            f"{found.forwards * found.n_prompts:,.0f} in all{seen}",
            f"about {found.n_bytes / 2**20:,.1f} MiB of distances"
            + ("" if found.n_free is None else f"; {found.n_free / 2**20:,.0f} MiB are free"),
        ]
    return lines


class StudyProgress(Progress):
    """Two bars, prompts above the layers of those at work; on anything but a terminal a line now and then.

    Does what a StudyObserver of `studies` does. say: prints a line on stdout; each finished prompt gets one.
    """

    def __init__(self, quiet: bool, say: Callable[[str], None], verbose: bool = False) -> None:
        super().__init__(quiet, verbose)
        self.say = say
        self._prompts = None
        self._n_jobs = self._n_done = self._n_measured = 0
        self._started = self._last_line = time.monotonic()

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__()
        if self._prompts is not None:
            self._prompts.close()
            self._prompts = None

    def note(self, text: str) -> None:
        self._write(lambda: remark(text) if not self.quiet else None)

    def title(self, title: str) -> None:
        """The first lines."""
        self.say(title)
        self.say("=" * len(title))

    @property
    def has_begun(self) -> bool:
        """Whether prompts have been run, or found done."""
        return self._n_done > 0

    def study_begins(self, n_jobs: int | None, n_done: int) -> None:
        self._n_jobs, self._n_done = n_jobs, n_done
        self._started = self._last_line = time.monotonic()
        self.say(
            f"Analyzing {n_jobs} prompt{'s' * (n_jobs != 1)}"
            + (f", {n_done} of them are done already" if n_done else "")
            + "..."
        )
        if not self.quiet and sys.stderr.isatty():
            self._prompts = self._make_bar(
                desc="Prompts", total=n_jobs, initial=n_done, unit="prompt", position=0, leave=False
            )

    def job_done(self, job: Any, done: Any, saved: Any) -> None:
        self._n_measured += 1
        if done.error is not None:
            line = f"{job.name}: FAILED: {done.error[1]}"
        else:
            line = f"{job.name}: {quoted(done.text, 60)}"
            line += f" -> {saved.paths[0]}" if saved else ""
        self._write(lambda: self.say(f"[{self._n_done + 1}/{self._n_jobs or '?'}] {line}"))
        for note in saved.notes if saved else ():
            self.note(note)
        self.skipped(1)

    def row_failed(self, problem: Any) -> None:
        name = told(problem.name or f"row {problem.row}")
        self._write(lambda: self.say(f"[{self._n_done + 1}/{self._n_jobs or '?'}] {name}: FAILED: {problem.message}"))
        self.skipped(1)

    def skipped(self, n_rows: int) -> None:
        self._n_done += n_rows
        if self._prompts is not None:
            self._prompts.update(n_rows)
        elif not self.quiet and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            seconds = self._last_line - self._started
            n_left = (self._n_jobs or 0) - self._n_done
            left = seconds / self._n_measured * n_left if self._n_measured else 0.0
            about = f", about {left:.0f} s left" if left > 0 else ""
            remark(f"{self._n_done} of {self._n_jobs or '?'} prompts after {seconds:.0f} s{about}")

    def study_ends(self, tally: Any) -> None:
        """The last lines: how many of each, and how fast."""
        counts = [f"{tally.n_written} written"]
        counts += [f"{tally.n_skipped} were there already"] if tally.n_skipped else []
        shown = ", ".join(map(told, tally.failed[:10])) + (", ..." if len(tally.failed) > 10 else "")
        counts += [f"{len(tally.failed)} failed: {shown}"] if tally.failed else []
        self.say("")
        self.say(f"{_prompts(tally.n_jobs)}: {'; '.join(counts)}")
        for (name, why), n in tally.left_out.items():
            self.say(f"{_prompts(n)} without {name}: {told(why)}")
        if tally.errors_path is not None:
            self.say(f"Errors: {tally.errors_path}")
            if self.quiet:
                remark(f"{len(tally.failed)} of {tally.n_jobs} failed, see {tally.errors_path}")
        if tally.n_written:
            self.say(
                f"{_prompts(tally.n_written)} in {tally.seconds:.1f} s: {tally.n_written / tally.seconds:.2f} prompts/s, "
                f"{tally.n_tokens / tally.seconds:.0f} masked tokens/s"
            )

    def _say_step(self, label: str) -> None:
        pass

    def _make_bar(self, **settings: Any):
        return super()._make_bar(**{"position": 1} | settings)

    def _write(self, write: Callable[[], None]) -> None:
        if self._prompts is None:
            write()
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):  # the bars make room
            write()
