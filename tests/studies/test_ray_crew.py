"""What becomes of blocks when workers end, hang or fail: by workers that are only played, one event after the other."""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from studying import sentences

from mask_impact.analyses.settings import RunSettings
from mask_impact.errors import DeviceError, WorkerError
from mask_impact.models import loading
from mask_impact.studies import ray_guard
from mask_impact.studies.crew import Block, Done
from mask_impact.studies.digest import Identity
from mask_impact.studies.jobs import Job
from mask_impact.studies.progress import StudyObserver
from mask_impact.studies.ray_crew import RayCrew, Share, Wish, reason, share_of, threads_of
from mask_impact.studies.ray_worker import Begun, Ready, Refused, Worker

MODEL = Identity("tiny", None, (("model.safetensors", 10, 1),), "torch.float32", "cpu")


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


@dataclass
class PlayedRay:
    """In place of the module: workers do a step when something of them is asked for. script: what a worker does with (its
    number, block, alone), as a generator whose RayError is its end; load: what it says when it has loaded."""

    script: object
    load: object = lambda number: Ready(MODEL, "tiny", None, "tiny")
    began: list = field(default_factory=list)  # (worker, names wanted, alone)
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __post_init__(self):
        self._numbers, self._turn = count(1), 0

    def remote(self, cls):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *args: self._actor()))

    def _actor(self):
        number = next(self._numbers)

        def measure(block, alone, shape):
            self.began.append((number, tuple(sorted(block.wanted)), tuple(sorted(alone))))
            return self.script(number, block, alone)

        return SimpleNamespace(
            load=SimpleNamespace(remote=lambda: lambda: self.load(number)),
            measure=SimpleNamespace(options=lambda **options: SimpleNamespace(remote=measure)),
        )

    def wait(self, waiting, num_returns, timeout):
        self._turn += 1
        return [waiting[self._turn % len(waiting)]], []

    def get(self, what):
        return what() if callable(what) else what

    def kill(self, actor):
        pass


class Notes(StudyObserver):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def blocks(*names):
    """A block for each list of names, all wanted."""
    return [
        Block(number, tuple(Job(name, name, (), RunSettings(), {}) for name in some), frozenset(some))
        for number, some in enumerate(names)
    ]


def together(number, block, alone):
    """As a worker does it: those that are not alone in one group, then the others."""
    names = [job.name for job in block.jobs]
    groups = [[name for name in names if name not in alone], *([name] for name in names if name in alone)]
    for group in groups:
        if wanted := tuple(name for name in group if name in block.wanted):
            yield Begun(wanted)
            yield from (Done(name, name.upper()) for name in wanted)


def ended_by(poison, then=RayError):
    """Workers that end where a prompt of this name is at work."""

    def script(number, block, alone):
        for event in together(number, block, alone):
            yield event
            if isinstance(event, Begun) and poison in event.names:
                raise then("ended")

    return script


def crew_of(ray, n=2, observer=None, timeout=60.0):
    crew = RayCrew(ray, Wish(n, timeout=timeout), None, observer or StudyObserver(), Share(n, 1.0, 0.0))
    crew.begin()
    return crew


def outcome(crew, coming, stop=lambda: False):
    """({name: content or error}, numbers of the blocks that are done)."""
    found, finished = {}, []
    for block, done in crew.run(coming, None, stop):
        if done is None:
            finished.append(block.number)
        else:
            assert done.name not in found
            found[done.name] = done.content or done.error[0]
    return found, sorted(finished)


def test_all_blocks_are_done_by_who_is_free():
    ray = PlayedRay(together)
    found, finished = outcome(crew_of(ray), blocks("ab", "cd", "e"))
    assert found == {name: name.upper() for name in "abcde"}
    assert finished == [0, 1, 2]
    assert {number for number, *_ in ray.began} == {1, 2}


def test_no_more_blocks_are_taken_than_there_are_workers():
    taken, most = [], 0

    def coming():
        for block in blocks(*"abcdefgh"):
            taken.append(block.number)
            yield block

    n_done = 0
    for _, done in crew_of(PlayedRay(together)).run(coming(), None, lambda: False):
        n_done += done is None
        most = max(most, len(taken) - n_done)
    assert most == 2


def test_what_a_worker_leaves_is_done_in_the_same_company():
    """Its results that came are kept, and those that it leaves are measured with the others as before."""
    ended = []

    def script(number, block, alone):
        yield Begun(("a", "b", "c"))
        yield Done("a", "A")
        if not ended:
            ended.append(number)
            raise RayError("ended")
        yield from (Done(name, name.upper()) for name in "bc")

    def once_left(number, block, alone):
        events = together(number, block, alone) if ended else script(number, block, alone)
        yield from events

    ray = PlayedRay(once_left)
    found, finished = outcome(crew_of(ray, 1), blocks("abc"))
    assert found == {"a": "A", "b": "B", "c": "C"}
    assert finished == [0]
    assert [entry[1:] for entry in ray.began] == [(("a", "b", "c"), ()), (("b", "c"), ())]


def test_a_prompt_that_ends_its_workers_is_found_among_others_and_left_out():
    observer = Notes()
    ray = PlayedRay(ended_by("b"))
    found, finished = outcome(crew_of(ray, 2, observer), blocks("abc", "de"))
    assert found == {"a": "A", "b": "WorkerError", "c": "C", "d": "D", "e": "E"}
    assert finished == [0, 1]
    own = [entry[1:] for entry in ray.began if "b" in entry[1]]
    assert own[:2] == [(("a", "b", "c"), ())] * 2  # once more as it was: a worker may end by chance
    assert {alone for _, alone in own[2:]} == {("a", "b", "c")}
    assert len(own) == 4
    assert any("ended at a, b, c" in note for note in observer.notes)
    assert any("ended at b " in note for note in observer.notes)


def test_a_prompt_that_is_alone_may_end_two_workers():
    ray = PlayedRay(ended_by("a"))
    found, finished = outcome(crew_of(ray, 1), blocks("a", "b"))
    assert (found, finished) == ({"a": "WorkerError", "b": "B"}, [0, 1])
    assert sum(wanted == ("a",) for _, wanted, _ in ray.began) == 2


def test_a_worker_that_does_not_get_on_is_said_to():
    def slow(number, block, alone):
        yield Begun(("a",))
        time.sleep(0.05)
        raise RayError("ended")

    observer = Notes()
    events = [
        done for _, done in crew_of(PlayedRay(slow), 1, observer, timeout=0.04).run(blocks("a"), None, lambda: False)
    ]
    assert "did not get on for" in events[0].error[1]
    assert any("did not get on for" in note for note in observer.notes)


def test_workers_that_end_between_prompts_end_the_study_in_one_line():
    def script(number, block, alone):
        raise RayError("ended")
        yield

    with pytest.raises(WorkerError, match="without measuring the prompts from a on"):
        outcome(crew_of(PlayedRay(script)), blocks("ab"))


def test_who_is_told_to_stop_takes_no_more_and_finishes_what_is_at_work():
    stopped = []

    def script(number, block, alone):
        stopped.append(True)
        yield from together(number, block, alone)

    found, finished = outcome(crew_of(PlayedRay(script), 1), blocks("ab", "cd"), lambda: bool(stopped))
    assert (found, finished) == ({"a": "A", "b": "B"}, [0])


def test_one_that_ends_after_the_stop_is_not_done_again():
    stopped = []

    def script(number, block, alone):
        stopped.append(True)
        yield Begun(("a",))
        raise RayError("ended")

    assert outcome(crew_of(PlayedRay(script), 1), blocks("a"), lambda: bool(stopped)) == ({}, [])


def test_an_error_in_a_worker_is_the_study_s():
    def script(number, block, alone):
        yield Begun(("a",))
        raise RayTaskError(ZeroDivisionError("there"))

    with pytest.raises(ZeroDivisionError, match="there"):
        outcome(crew_of(PlayedRay(script)), blocks("a"))


def test_a_worker_that_ends_while_it_loads_is_tried_again_and_then_done_without():
    def load(number):
        if number != 2:
            raise RayError("ended")
        return Ready(MODEL, "tiny", None, "tiny")

    observer = Notes()
    found, _ = outcome(crew_of(PlayedRay(together, load), 2, observer), blocks("a", "b"))
    assert found == {"a": "A", "b": "B"}


def test_where_all_workers_end_while_they_load_it_is_said():
    def load(number):
        raise RayError("ended")

    with pytest.raises(WorkerError, match="no worker is left"):
        crew_of(PlayedRay(together, load))


def test_a_model_that_is_refused_is_refused_as_without_workers():
    with pytest.raises(DeviceError, match="no GPU"):
        crew_of(PlayedRay(together, lambda number: Refused("DeviceError", "no GPU")))


def test_a_machine_without_the_model_is_done_without():
    ray = PlayedRay(
        together, lambda number: Ready(MODEL, "tiny", None, "tiny") if number == 2 else Refused("ModelError", "none")
    )
    observer = Notes()
    found, _ = outcome(crew_of(ray, 2, observer), blocks("a", "b", "c"))
    assert found == {"a": "A", "b": "B", "c": "C"}
    assert "Worker 1 is done without: none" in observer.notes


@pytest.mark.parametrize(("other", "accepted"), [
    (Identity("tiny", None, (("model.safetensors", 10, 2),), "torch.float32", "cpu"), True),  # copied at another time
    (Identity("tiny", None, (("model.safetensors", 11, 1),), "torch.float32", "cpu"), False),
    (Identity("tiny", None, MODEL.weights, "torch.bfloat16", "cpu"), False),
    (Identity("tiny", None, MODEL.weights, "torch.float32", "cuda"), False),
])  # fmt: skip
def test_all_workers_have_the_same_model(other, accepted):
    def load(number):
        return Ready(MODEL if number == 2 else other, "tiny", None, "tiny")

    crew = crew_of(PlayedRay(together, load))
    if accepted:
        assert outcome(crew, blocks("a", "b"))[1] == [0, 1]
    else:
        with pytest.raises(WorkerError, match="worker 1 has another model"):
            outcome(crew, blocks("ab", "cd", "ef"))


@pytest.mark.parametrize(("nodes", "n", "how", "expected"), [
    ([{"CPU": 8}], None, {}, (1, 8, 0)),
    ([{"CPU": 8}, {"CPU": 4}], None, {}, (2, 4, 0)),
    ([{"CPU": 8}], 3, {}, (3, 2, 0)),
    ([{"CPU": 2}], 4, {}, (4, 0.5, 0)),
    ([{"CPU": 6}, {"CPU": 2}], 2, {}, (2, 3, 0)),
    ([{"CPU": 4}, {"CPU": 4}], 3, {}, (3, 2, 0)),
    ([{"CPU": 32, "GPU": 4}, {"CPU": 32, "GPU": 4}], None, {}, (8, 8, 1)),
    ([{"CPU": 32, "GPU": 4}], 2, {}, (2, 16, 1)),
    ([{"CPU": 32, "GPU": 4}], 2, {"whole": True}, (2, 16, 2)),
    ([{"CPU": 32, "GPU": 2}], 4, {}, (4, 8, 0.5)),
    ([{"CPU": 32, "GPU": 2}], 4, {"gpus": False}, (4, 8, 0)),
    ([{"CPU": 32, "GPU": 2}], None, {"gpus": False}, (1, 32, 0)),
    ([{"CPU": 32}, {"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}], None, {}, (2, 4, 1)),
    ([{"CPU": 32, "GPU": 2}], 3, {}, (3, 10, 0.5)),
    ([{"CPU": 2}, {"CPU": 1}], 4, {}, (4, 0.5, 0)),
    ([{"CPU": 16, "GPU": 3}, {"CPU": 16, "GPU": 1}], 2, {"whole": True}, (2, 16, 1)),
])  # fmt: skip
def test_machines_are_divided_so_that_all_workers_have_room(nodes, n, how, expected):
    share = share_of(nodes, n, **how)
    assert (share.n, share.cpus, share.gpus) == expected
    room = sum(
        min(node["CPU"] // share.cpus, node.get("GPU", 0) // share.gpus if share.gpus else 99_999) for node in nodes
    )  # as Ray places them, one machine after the other
    assert room >= share.n


def test_a_worker_has_as_many_threads_as_cpus_or_as_are_asked_for(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_of(cpus) for cpus in (0.5, 1.0, 8.0)] == [1, 1, 8]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(8.0) == 3


def test_why_a_worker_ended_is_a_few_words():
    low = "The actor died: killed due to the node running low on memory."
    crashed = (
        "The actor died unexpectedly. (1) The process is killed by SIGKILL by OOM killer due to high memory usage."
    )
    gone = "The actor died because its node has died. Node Id: 12"
    assert [reason(RayError(text)) for text in (low, crashed, gone)] == [
        "the machine ran low on memory, and Ray ended it",
        "its process crashed or was ended, as the system does where memory runs out",
        "its machine is gone",
    ]


def test_a_prompt_that_is_measured_later_has_the_bits_that_it_has_among_the_others(text_checkpoint):
    """As after a worker that has ended; by itself it has others, which this shows, too."""
    worker = Worker(lambda: loading.load(str(text_checkpoint)), None, 600.0)
    assert worker.load().name == str(text_checkpoint)
    jobs = tuple(Job(text, text, (), RunSettings(), {}) for text in sentences(6))
    names = [job.name for job in jobs]

    def measured(wanted, alone=()):
        events = list(worker.measure(Block(0, jobs, frozenset(wanted)), frozenset(alone), None))
        begun = [set(event.names) for event in events if isinstance(event, Begun)]
        done = {event.name: event.content for event in events if isinstance(event, Done)}
        assert set().union(*begun) == {*done} == {*wanted}
        return {name: outcome.result.steps[0].l2.tobytes() for name, outcome in done.items()}

    whole = measured(names)
    for name in names[::2]:
        assert measured([name]) == {name: whole[name]}
    assert any(measured([name], [name])[name] != whole[name] for name in names)


HOLDER = """
import subprocess, sys, time
guard = subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2]], stdin=subprocess.PIPE, start_new_session=True)
own = open(sys.argv[2] + "/own", "w")
left = subprocess.Popen([sys.executable, "-c", "import sys, time; file = open(sys.argv[1], 'w'); time.sleep(600)",
                         sys.argv[2] + "/log"], start_new_session=True)
print(left.pid, flush=True)
time.sleep(600 * (sys.argv[3] == "killed"))
guard.stdin.close()
guard.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc, to know whose files are open")
@pytest.mark.parametrize("end", ["killed", "as planned"])
def test_what_is_left_of_ray_goes_with_the_process_that_started_it(tmp_path, end):
    folder = tmp_path / "ray"
    folder.mkdir()
    command = [sys.executable, "-c", HOLDER, ray_guard.__file__, str(folder), end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        left = int(holder.stdout.readline())
        if end == "killed":
            holder.kill()
        code = holder.wait(60)
    assert code == (-9 if end == "killed" else 0)
    deadline = time.monotonic() + 60
    while folder.exists() or runs(left):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(process):
    """Whether a process, by its id, is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
