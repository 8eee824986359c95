"""Nothing outlives a run, in whatever way it ends."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vqa_grpo.cli.leash import TOKEN, leash
from vqa_grpo.jobs.processes import kill_marked

DEADLINE = 30.0  # only a hanging test waits this long

# A run that has started a child in a session of its own, which has a child in another session again.
RUN = f"""
import os, subprocess, sys, time
from vqa_grpo.cli.leash import TOKEN, leash
SLEEP = "import time; time.sleep(120)"
CHILD = f'''import subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "{{SLEEP}}"], start_new_session=True)
print(grandchild.pid, flush=True)
time.sleep(120)'''
with leash(sys.argv[1]):
    os.environ[{TOKEN!r}] = sys.argv[1]
    child = subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True, stdout=subprocess.PIPE, text=True)
    print(child.pid, child.stdout.readline().strip(), flush=True)
    if sys.argv[2] == "wait":
        time.sleep(120)
    if sys.argv[2] == "fail":
        raise SystemExit(3)
"""


def start(token: str, how: str) -> tuple[subprocess.Popen[str], list[int]]:
    run = subprocess.Popen([sys.executable, "-c", RUN, token, how], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pids = [int(word) for word in run.stdout.readline().split()]
    assert len(pids) == 2
    return run, pids


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_that_nobody_could_handle_no_process_of_the_run_is_left(number):
    run, pids = start(secrets.token_hex(8), "wait")
    assert all(map(alive, pids))
    run.send_signal(number)
    run.wait()
    assert all_gone(pids)


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("fail", 3)])
def test_a_run_that_ends_by_itself_waits_until_everything_is_gone(how, code):
    run, pids = start(secrets.token_hex(8), how)
    assert run.wait() == code
    assert not any(map(alive, pids))  # at once: the leash's end waits for it


def test_other_runs_are_left_alone():
    """The token says whose a process is; two runs on one machine do not end each other."""
    run, pids = start(secrets.token_hex(8), "wait")
    with leash(secrets.token_hex(8)):
        pass
    kill_marked(TOKEN, secrets.token_hex(8))
    assert all(map(alive, pids))
    run.kill()
    run.wait()
    assert all_gone(pids)


def test_the_process_that_kills_is_not_among_the_killed(monkeypatch):
    token = secrets.token_hex(8)
    code = f"from vqa_grpo.jobs.processes import kill_marked; kill_marked({TOKEN!r}, {token!r}); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {TOKEN: token}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "alive"
