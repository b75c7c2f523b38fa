"""Runs of every kind that are killed at random moments lose nothing, and leave nothing half-written."""

import os
import subprocess
import sys

import pytest
from studying import REPOSITORY

KILLS = os.environ.get("KILLS", "4")  # a hundred: KILLS=100 python -m pytest -m slow tests/studies/test_killed.py


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing_and_the_same_command_ends_as_if_undisturbed(tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "kill_runs.py"), KILLS, "0"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{KILLS} kills in runs of" in done.stdout
    assert ": 0 did harm" in done.stdout
