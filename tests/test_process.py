"""Processes on a real Ray, with real SIGKILLs. What does not need Ray to be seen is tested inline."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from sys import platform as sys_platform
from typing import Any

import pytest

from actors import sys
from actors.exits import AlreadyStarted, Died, NoProc, StartFailed, Timeout
from actors.node import call, call_async, cast, exit, here, is_alive, join, living, spawn, whereis
from actors.peer import Peer
from actors.pid import Pid
from actors.process import RayNode
from actors.supervision import ChildSpec, Policy
from actors.supervisor import Supervisor, start_child, which_children
from tests.servers import Block, Crash, Echo, Loader, Trapper, Unwilling

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


@pytest.fixture(scope="module")
def echo(ray: None) -> Iterator[Pid]:
    """For tests that leave it as it was."""
    pid = spawn(Echo)
    yield pid
    sys.stop(pid)


@pytest.fixture(scope="module")
def witness(ray: None) -> Iterator[Pid]:
    """Watches others. What it has seen is taken out of it."""
    pid = spawn(Echo)
    yield pid
    sys.stop(pid)


def seen(pid: Pid) -> list[Any]:
    found: list[Any] = call(pid, "seen")
    sys.replace_state(pid, forget)
    return found


def forget(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "seen": []}


def wait_for(pid: Pid, number: int) -> list[Any]:
    """What a witness has seen, as soon as it is that much."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if len(call(pid, "seen")) >= number:
            break
    return seen(pid)


def sigkill(pid: Pid) -> None:
    os.kill(call(pid, "os_pid"), signal.SIGKILL)


def parent_of(os_pid: int) -> int:
    return int(Path(f"/proc/{os_pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for_end_of(os_pid: int) -> None:
    deadline = time.monotonic() + 10
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{os_pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline


# The cluster


def test_own_ray_asks_for_a_token_and_listens_on_loopback() -> None:
    import ray as real_ray

    assert os.environ["RAY_AUTH_MODE"] == "token"
    address, _, port = real_ray.get_runtime_context().gcs_address.rpartition(":")
    assert address == "127.0.0.1"
    assert {listening for listening, at in listeners() if at == int(port)} == {LOOPBACK}


LOOPBACK = "0100007F"  # 127.0.0.1, as the kernel writes it


@pytest.mark.skipif(sys_platform != "linux", reason="elsewhere Ray begins workers itself")
def test_a_process_has_the_systems_own_allocator(echo: Pid) -> None:
    """Ray gives its servers another one, which hands the memory of each step back; a model loses a twentieth by it."""
    assert "jemalloc" not in Path(f"/proc/{call(echo, 'os_pid')}/maps").read_text()


def listeners() -> list[tuple[str, int]]:
    """Address and port of every listening socket; of an IPv6 address the last part."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [(line[1].split(":")[0][-8:], int(line[1].split(":")[1], 16)) for line in lines if line[3] == "0A"]


# Calls


def test_call_gets_its_reply_from_another_program(echo: Pid) -> None:
    assert call(echo, {"a": [1, 2]}) == {"a": [1, 2]}
    assert call(echo, "os_pid") != os.getpid()


def test_callbacks_all_run_in_the_processs_own_thread(echo: Pid) -> None:
    assert {call(echo, "thread") for _ in range(5)} == {str(echo)}


def test_call_between_processes_knows_its_caller(echo: Pid, witness: Pid) -> None:
    assert call(witness, ("call", echo, "caller")) == witness
    assert call(echo, "caller") is None


def test_call_fails_in_the_caller_when_its_time_is_over_and_the_late_reply_is_dropped(echo: Pid) -> None:
    with pytest.raises(Timeout):
        call(echo, "later", timeout=0.1)
    cast(echo, ("answer", "too late"))
    assert call(echo, "fresh") == "fresh"


def test_call_async_waits_without_blocking_its_loop(echo: Pid) -> None:
    async def many() -> list[Any]:
        return await asyncio.gather(*(call_async(echo, number) for number in range(50)))

    async def too_long() -> None:
        await call_async(echo, "later", timeout=0.1)

    assert asyncio.run(many()) == list(range(50))
    with pytest.raises(Timeout):
        asyncio.run(too_long())
    cast(echo, ("answer", "too late"))


def test_open_call_can_be_answered_by_another_process(echo: Pid, witness: Pid) -> None:
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(call(echo, "later")))
    caller.start()
    while not sys.get_state(echo)["open"]:
        pass
    from_ = call(echo, "open")
    call(witness, ("answer", from_, "from elsewhere"))
    caller.join()
    assert answers == ["from elsewhere"]


def test_reply_that_cannot_be_sent_fails_the_call_and_not_the_server(echo: Pid) -> None:
    with pytest.raises(Exception, match="pickle"):
        call(echo, "lock")
    assert call(echo, "alive") == "alive"


def test_message_that_cannot_be_read_is_lost_alone(witness: Pid) -> None:
    with pytest.raises(Exception, match="not readable"):
        call(witness, Unreadable())
    cast(witness, Unreadable())
    begin = time.monotonic()
    cast(witness, "next")
    assert seen(witness) == ["next"]
    assert time.monotonic() - begin < 1


class Unreadable:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (unreadable, ("not readable",))


def unreadable(why: str) -> None:
    raise ValueError(why)


def test_messages_keep_their_order_though_large_ones_travel_another_way(witness: Pid) -> None:
    large = b"x" * 300_000
    for number in range(60):
        cast(witness, (number, large if number % 7 == 0 else b""))
    assert [number for number, _ in seen(witness)] == list(range(60))


@pytest.fixture
def only_by_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As between two machines."""
    monkeypatch.setattr(Peer, "_present_cable", lambda peer: None)


@pytest.mark.usefixtures("only_by_ray")
def test_without_a_socket_messages_go_by_ray(echo: Pid, witness: Pid) -> None:
    assert call(echo, "hello") == "hello"
    with pytest.raises(Timeout):
        call(echo, "later", timeout=0.1)
    cast(echo, ("answer", "too late"))
    with pytest.raises(Exception, match="pickle"):
        call(echo, "lock")
    with pytest.raises(Exception, match="not readable"):
        call(witness, Unreadable())
    assert call(echo, "fresh") == "fresh"


@pytest.mark.usefixtures("only_by_ray")
def test_sigkill_is_seen_by_who_has_no_socket() -> None:
    pid = spawn(Echo)
    sigkill(pid)
    with pytest.raises((Died, NoProc)):
        call(pid, "are you there")


def test_messages_keep_their_order_from_one_way_to_the_other(witness: Pid, monkeypatch: pytest.MonkeyPatch) -> None:
    by_socket, number = Peer._present_cable, count()
    monkeypatch.setattr(Peer, "_present_cable", lambda peer: by_socket(peer) if next(number) % 3 else None)
    for place in range(60):
        cast(witness, place)
    assert seen(witness) == list(range(60))


# The end of a process


def test_crash_reaches_caller_monitor_and_link_with_its_reason(witness: Pid) -> None:
    pid, linked = spawn(Echo), spawn(Trapper)
    call(witness, ("monitor", pid))
    call(linked, ("link", pid))
    reason = ("error", "ValueError", "boom")
    with pytest.raises(Died) as failed:
        call(pid, Crash("boom"))
    assert failed.value.reason == reason
    assert wait_for(witness, 1) == [(pid, reason)]
    assert wait_for(linked, 1) == [("exit", pid, reason)]
    assert seen(witness) == []
    with pytest.raises(NoProc):
        call(pid, "hello")
    sys.stop(linked, ("shutdown", "done"))


def test_sigkill_reaches_caller_and_monitor_as_killed(witness: Pid) -> None:
    pid = spawn(Echo)
    call(witness, ("monitor", pid))
    os_pid = call(pid, "os_pid")
    threading.Timer(0.1, os.kill, (os_pid, signal.SIGKILL)).start()
    with pytest.raises(Died) as failed:
        call(pid, "later")
    assert failed.value.reason == "killed"
    assert wait_for(witness, 1) == [(pid, "killed")]
    assert not is_alive(pid)
    with pytest.raises(NoProc):
        call(pid, "hello")


def test_process_that_stops_answers_first_and_its_reason_is_heard(witness: Pid) -> None:
    pid = spawn(Echo)
    call(witness, ("monitor", pid))
    assert call(pid, "stop") == "bye"
    assert wait_for(witness, 1) == [(pid, "normal")]


def test_busy_process_hears_the_signal_that_ends_it() -> None:
    pid = spawn(Echo)
    os_pid = call(pid, "os_pid")
    cast(pid, Block(60))
    assert is_alive(pid)  # it answers this although it is at work
    exit(pid, "shutdown")
    assert join(pid, timeout=5) == "shutdown"
    wait_for_end_of(os_pid)


def test_process_that_was_stopped_by_the_system_is_killed_all_the_same() -> None:
    pid = spawn(Echo)
    os_pid = call(pid, "os_pid")
    os.kill(os_pid, signal.SIGSTOP)
    exit(pid, "kill")
    assert join(pid, timeout=5) in ("killed", "noproc")
    wait_for_end_of(os_pid)


def test_monitor_of_nobody_says_noproc(witness: Pid) -> None:
    call(witness, ("monitor", Pid("nobody", 1)))
    assert wait_for(witness, 1) == [(Pid("nobody", 1), "noproc")]


def test_timer_fires_and_a_cancelled_one_does_not(witness: Pid) -> None:
    cancelled = call(witness, ("send_after", 0.05, "never"))
    assert call(witness, ("cancel", cancelled)) is True
    call(witness, ("send_after", 0.1, "tick"))
    assert wait_for(witness, 1) == ["tick"]


# Starting, and names


@pytest.mark.parametrize(("how", "reason"), [("raise", ("error", "OSError", "no such file")), ("ignore", "ignore")])
def test_start_that_fails_says_why(how: str, reason: object) -> None:
    with pytest.raises(StartFailed) as failed:
        spawn(Unwilling, how)
    assert failed.value.reason == reason


def test_handle_continue_runs_before_the_first_message() -> None:
    pid = spawn(Loader)
    assert call(pid, "seen") == ["load"]
    sys.stop(pid)


def test_name_belongs_to_one_living_process_and_its_next_life_has_the_next_epoch() -> None:
    first = spawn(Echo, name="solo")
    with pytest.raises(AlreadyStarted) as taken:
        spawn(Echo, name="solo")
    assert taken.value.pid == first == whereis("solo") == Pid("solo", 1)
    sigkill_quietly(first)
    second = spawn(Echo, name="solo")
    assert second == Pid("solo", 2) == whereis("solo")
    assert call("solo", "me") == second
    sys.stop(second)
    assert whereis("solo") is None


def sigkill_quietly(pid: Pid) -> None:
    sigkill(pid)
    assert join(pid, timeout=10) in ("killed", "noproc")


def test_of_two_that_start_the_same_name_one_wins(witness: Pid) -> None:
    outcomes: list[Any] = []

    def start() -> None:
        try:
            outcomes.append(spawn(Echo, name="race"))
        except AlreadyStarted as taken:
            outcomes.append(("taken", taken.pid))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = Pid("race", 1)
    assert sorted(outcomes, key=str) == sorted([winner, ("taken", winner)], key=str)
    sys.stop(winner)


# Supervision, with real deaths


def test_child_that_is_sigkilled_is_restarted_by_its_supervisor() -> None:
    sup = spawn(Supervisor, Policy(), [ChildSpec("a", ("tests.servers:Echo",))], name="killing")
    first = whereis("killing.a")
    assert first == Pid("killing.a", 1)
    sigkill_quietly(first)
    assert call(wait_for_life("killing.a", 2), "alive") == "alive"
    child = which_children(sup)[0]
    assert (child.num_restarts, child.last_reason) == (1, "killed")
    sys.stop(sup, "shutdown")
    assert living("killing") == []


def test_sigkilled_supervisor_comes_back_and_takes_over_its_living_child() -> None:
    inner = Supervisor.child_spec(Policy(), [ChildSpec("a", ("tests.servers:Echo",))], id="inner", type="supervisor")
    outer = spawn(Supervisor, Policy(), [inner], name="outer")
    added = start_child("outer.inner", ChildSpec("added", ("tests.servers:Echo",)))
    assert added is not None
    child_os_pid = call("outer.inner.a", "os_pid")
    os.kill(supervisor_os_pid("outer.inner"), signal.SIGKILL)
    wait_for_life("outer.inner", 2)
    assert [child.pid for child in which_children("outer.inner")] == [Pid("outer.inner.a", 1)]
    assert call("outer.inner.a", "os_pid") == child_os_pid
    assert not is_alive(added)
    sigkill_quietly(Pid("outer.inner.a", 1))  # and it is watched again
    wait_for_life("outer.inner.a", 2)
    sys.stop(outer, "shutdown")
    assert living("outer") == []


def supervisor_os_pid(name: str) -> int:
    from ray._private import state

    pid = whereis(name)
    (place,) = [each for each in state.actors().values() if each["Name"] == str(pid)]
    os_pid: int = place["Pid"]
    return os_pid


def wait_for_life(name: str, epoch: int) -> Pid:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid = whereis(name)
        if pid is not None and pid.epoch >= epoch:
            which_children(name.rpartition(".")[0])  # its supervisor is through with the restart
            return pid
    raise AssertionError(f"{name} did not come back")


@pytest.mark.skipif(sys_platform != "linux", reason="elsewhere a fork is not safe")
def test_processes_are_forked_by_a_nursery_that_only_we_may_ask(echo: Pid, witness: Pid) -> None:
    (nursery,) = {parent_of(call(pid, "os_pid")) for pid in (echo, witness)}
    command = Path(f"/proc/{nursery}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert command[-3:-1] == [b"-m", b"actors.nursery"]
    assert Path(command[-1].decode()).parent.stat().st_mode & 0o777 == 0o700


def test_a_runtime_environment_is_there_for_who_asks() -> None:
    import ray as library

    environment = {"env_vars": {"HELLO": "there"}}  # which no fork of ours could give
    task = library.remote(num_cpus=0, runtime_env=environment)(lambda: os.environ["HELLO"])
    assert library.get(task.remote(), timeout=60) == "there"


class Word(str):
    """As a program's own class, which no other process can import."""


def test_what_a_programs_main_file_defines_is_carried_by_value(echo: Pid, monkeypatch: pytest.MonkeyPatch) -> None:
    main = import_module("__main__")
    monkeypatch.setattr(Word, "__module__", "__main__")
    monkeypatch.setattr(main, "Word", Word, raising=False)
    call(echo, Word("seen"))  # its class can be pickled by name here, and would be looked for in vain there


def test_an_event_loop_does_not_wait_for_rays_answer_where_a_process_is(
    echo: Pid, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    look_up = RayNode._peer

    def noted(node: RayNode, pid: Pid) -> Peer:
        if pid not in node._peers:
            looked_up.append(threading.current_thread().name)
        return look_up(node, pid)

    monkeypatch.setattr(RayNode, "_peer", noted)
    node = here()
    assert isinstance(node, RayNode)
    node._peers.pop(echo, None)
    assert asyncio.run(call_async(echo, "me")) == echo
    assert len(looked_up) == 1 and looked_up != [threading.main_thread().name]


def test_who_asks_a_silent_process_whether_it_lives_leaves_no_question_behind(echo: Pid) -> None:
    node = here()
    assert isinstance(node, RayNode)
    peer = node._peer(echo)
    assert peer.says_it_lives(10.0) is True
    os_pid = call(echo, "os_pid")
    os.kill(os_pid, signal.SIGSTOP)
    try:
        assert any(is_silent(peer) for _ in range(100))  # a stop takes effect some time after it was sent
    finally:
        os.kill(os_pid, signal.SIGCONT)
    assert peer._cable is not None and not peer._cable._open


def is_silent(peer: Peer) -> bool:
    try:
        peer.says_it_lives(0.05)
    except TimeoutError:
        return True
    return False
