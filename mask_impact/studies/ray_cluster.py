"""Ray on this machine for the time of a study, or a cluster that is there already.

What is started here listens to this machine alone, sends nothing to anybody, has its files where TMPDIR says, and is gone at
the end, also where this process is killed: `ray_guard` sees to that. Ray itself is read only when it is used.
"""

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mask_impact.errors import WorkerError
from mask_impact.studies import ray_guard

# Ray reads these when it is imported, and its processes inherit them.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what is to come; without it Ray warns of it
    "RAY_enable_pipe_based_agent_to_parent_health_check": "1",  # its helpers end as soon as it does
}
_ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the address of this machine is 127.0.0.1, on Linux too
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # if somebody ends Ray under us
}
LONGEST_FOLDER = 40  # bytes: what Ray adds to it is the name of a socket, which may have 107
SECONDS_TO_CLEAR = 20.0
INSTALL = "pip install 'mask-impact[ray]'"


@contextmanager
def ray_running(address: str | None, n_cpus: int | None = None, verbose: bool = False) -> Iterator[Any]:
    """The module `ray`, connected: to the cluster at `address` (`auto`: the one that this machine is part of), or else to one on
    this machine that ends with the block. WorkerError where it can't be had."""
    if importlib.util.find_spec("ray") is None:
        raise WorkerError(
            f"`workers` needs Ray, which is not installed: {INSTALL}; without `workers` one process does all"
        )
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    shared = {"log_to_driver": verbose, "logging_level": logging.CRITICAL, "configure_logging": True}
    if address is not None:
        with _connected(address, **shared) as ray:
            yield ray
        return
    folder = _temporary_folder()
    guard = subprocess.Popen(
        [sys.executable, ray_guard.__file__, folder], stdin=subprocess.PIPE, start_new_session=True, close_fds=True
    )
    before = {name: os.environ.get(name) for name in _ALONE}
    os.environ.update(_ALONE)
    try:
        with _connected(
            "local", num_cpus=n_cpus, include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=folder, **shared
        ) as ray:
            yield ray
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            guard.wait(SECONDS_TO_CLEAR)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _connected(address: str, **how: Any) -> Iterator[Any]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    import ray

    try:
        if ray.is_initialized():
            raise WorkerError("this process is connected to Ray already; end that (ray.shutdown()) first")
        try:
            with _apart():
                ray.init(address, **how)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]
            where = "Ray does not start on this machine" if address == "local" else f"there is no Ray at {address}"
            raise WorkerError(f"{where}: {said}") from error
        with suppress(ValueError):  # not in the main thread
            for number, handler in handlers.items():  # Ray takes SIGTERM for itself
                signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _apart() -> Iterator[None]:
    """While the block is open, processes that are started are of another group than this one, if that can be had: a signal to
    the whole group, as `timeout` sends it, is then for this process alone."""
    group = os.getpgrp() if hasattr(os, "setpgid") else None
    with suppress(OSError):  # the first of a session
        if group is not None:
            os.setpgid(0, 0)
    try:
        yield
    finally:
        with suppress(OSError):
            if group is not None:
                os.setpgid(0, group)


def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="mi-")
    if len(os.fsencode(folder)) <= LONGEST_FOLDER:
        return folder
    Path(folder).rmdir()
    most = LONGEST_FOLDER - len(Path(folder).name) - 1
    raise WorkerError(
        f"the path of the temporary folder {Path(folder).parent} is too long for Ray's sockets: set TMPDIR to a folder whose "
        f"path has at most {most} bytes"
    )
