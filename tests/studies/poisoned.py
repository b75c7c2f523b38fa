"""`python poisoned.py FLAGS`: the command with workers, some of whose prompts end the worker or hold it up for ever, or with
a disk that fills up. Read by the workers as well, which find it in PYTHONPATH."""

import errno
import os
import signal
import sys
import time
from pathlib import Path

from mask_impact.commands import main, single, study


def load_poisoned(*args, **how):
    """The model, in a worker that falls for prompts called poison and hang; it notes its id in the folder PIDS."""
    from mask_impact.studies import ray_worker

    run_group, pids = ray_worker.run_group, os.environ.get("PIDS")
    if pids:
        Path(pids, str(os.getpid())).touch()

    def run(loaded, group, *others):
        names = [task.key for task, _ in group]
        if any(name.startswith("poison") for name in names):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(name.startswith("hang") for name in names):
            time.sleep(600)
        time.sleep(float(os.environ.get("SLOWED", 0)))
        return run_group(loaded, group, *others)

    ray_worker.run_group = run
    return single.load_from(*args, **how)


def go():
    """The command."""
    study.load_from = load_poisoned
    if "FULL_AFTER" in os.environ:
        n_left, fsync = [int(os.environ["FULL_AFTER"])], os.fsync

        def full(descriptor):
            n_left[0] -= 1
            if n_left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        os.fsync = full
    return main.main(sys.argv[1:])
