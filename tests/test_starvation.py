"""actors/starvation.py, and the watchdog that goes by it: who gets no core is not stuck."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from actors import watchdog
from actors.inline import Inline
from actors.progress import Lesson, Progress, progress_path
from actors.starvation import Silence, waits_of

needs_linux = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count waits")
SPIN, SLEEP = "while True: pass", "import time; time.sleep(60)"


@contextmanager
def program(code: str, core: int) -> Iterator[int]:
    """A process on one core."""
    prelude = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\n"
    with subprocess.Popen([sys.executable, "-c", prelude + code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def waited(process_id: int, seconds: float) -> float:
    before = Silence(0.0).still(waits_of(process_id))
    time.sleep(seconds)
    return before.still(waits_of(process_id)).starved_seconds


@needs_linux
def test_a_process_that_gets_no_core_waits_for_one_and_others_do_not() -> None:
    core = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(program(SPIN, core))
        starved = stack.enter_context(program(SPIN, core))
        asleep, stopped = stack.enter_context(program(SLEEP, core)), stack.enter_context(program(SPIN, core))
        os.kill(stopped, signal.SIGSTOP)
        while "T (stopped)" not in Path(f"/proc/{stopped}/status").read_text():
            time.sleep(0.01)
        assert waited(starved, 0.6) > 0.2
        assert waited(asleep, 0.1) < 0.05
        assert waited(stopped, 0.1) < 0.05
        os.kill(stopped, signal.SIGCONT)


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    assert waits_of(2**22 + 1) == {}
    assert Silence(1.0).still({}).starved_seconds == 0.0


@pytest.mark.parametrize(("is_starved", "num_kills"), [(True, 0), (False, 1)])
def test_a_starved_step_is_let_live_and_a_stuck_one_is_ended(
    is_starved: bool, num_kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = list[int]()
    monkeypatch.setattr(os, "kill", lambda process_id, number: killed.append(number))
    progress = Progress(progress_path(tmp_path, "model/1"), Lesson())
    progress.begin(0.5)
    began = time.monotonic()
    with Inline():
        dog = watchdog.Watchdog()
        dog.directory, dog.num_looks = tmp_path / "progress", 0
        dog.kills, dog.suspects, dog.silences = [], set(), {}
        for look in range(20):
            now = began + look * 0.2
            monkeypatch.setattr(watchdog, "waits_of", lambda _, at=now: {"1": at * is_starved})
            dog.look(now)
            if dog.kills:
                break
    assert len(dog.kills) == num_kills
    assert (signal.SIGKILL in killed) == (not is_starved)
