"""Node: the functions with which a process asks the place where it lives.

The same server runs on two nodes: inline, in one thread on a given clock (`actors/inline.py`), and in Ray actors
(`actors/process.py`). A server says `call(pid, message)` and does not know which. As in asyncio, where it runs is
ambient, because client functions that took a node as an argument would carry it through every caller.
"""

from __future__ import annotations

from typing import Any

from actors.birth import NO_RESOURCES, Birth, Resources, Which
from actors.envelope import Call, Cast, Envelope, ExitSignal, Info, Link, Unlink
from actors.exits import KILL, NOPROC, NoProc, Reason
from actors.pid import From, Pid, Ref, Server
from actors.transport import Inside, Node

CALL_SECONDS = 5.0
START_SECONDS = 60.0

_here: list[Node] = []


def enter(node: Node) -> None:
    _here.append(node)


def leave(node: Node) -> None:
    _here.remove(node)


def here() -> Node:
    if not _here:
        raise RuntimeError("no node: call actors.process.connect() first, or work inside `with Inline():`")
    return _here[-1]


def now() -> float:
    """Seconds on the node's clock, which only ever goes forward."""
    return here().now()


def me() -> Pid:
    """The pid of the process that this code runs in."""
    return _loop().pid


def spawn(
    server: Which,
    *args: object,
    name: str | None = None,
    prefix: str = "",
    resources: Resources = NO_RESOURCES,
    timeout: float | None = START_SECONDS,
) -> Pid:
    """Start a process and wait for its `init`. Raises AlreadyStarted, Ignored, or StartFailed with the reason.

    A name is for one living process at a time; one without gets a name of its own, which begins with `prefix`.
    """
    pid = here().begin(birth_of(server, args, name, prefix, resources), None, timeout)
    here().finish(pid, timeout)
    return pid


def spawn_link(server: Which, *args: object, name: str | None = None, resources: Resources = NO_RESOURCES) -> Pid:
    """Like `spawn`, and each of the two ends with the other."""
    pid = spawn(server, *args, name=name, resources=resources)
    link(pid)
    return pid


def begin_monitor(birth: Birth, timeout: float | None = START_SECONDS) -> tuple[Pid, Ref]:
    """Half of a `spawn`: the process is there, its `init` may be under way. Raises AlreadyStarted.

    Its monitor is there from the first moment on, so that even an early end tells its reason.
    """
    loop = _loop()
    ref, notify = loop.open_monitor()
    try:
        return here().begin(birth, notify, timeout), ref
    except Exception:
        loop.close_monitor(ref)
        raise


def finish_monitor(pid: Pid, ref: Ref, timeout: float | None = START_SECONDS) -> None:
    """The other half: waits for `init`, and raises what `spawn` raises."""
    try:
        here().finish(pid, timeout)
    except Exception:
        _loop().close_monitor(ref)
        raise


def call(server: Server, message: object, timeout: float | None = CALL_SECONDS) -> Any:
    """Ask and wait for the answer. Raises Timeout, NoProc or Died, here in the caller; None waits for ever."""
    return here().ask(address(server), Call(message), timeout)


async def call_async(server: Server, message: object, timeout: float | None = CALL_SECONDS) -> Any:
    """`call`, for code that lives in an event loop."""
    return await here().ask_async(address(server), Call(message), timeout)


def cast(server: Server, message: object) -> None:
    """Tell, and do not wait. Whether anybody is there to hear it is not known."""
    _post(server, Cast(message))


def send(server: Server, message: object) -> None:
    """Put a message into `handle_info`."""
    _post(server, Info(message))


def reply(from_: From, value: object) -> None:
    """Answer a call that was left open by NoReply, from whichever process holds `from_`. A second answer is dropped."""
    here().answer(from_, value)


def whereis(name: str) -> Pid | None:
    """Who lives under this name now."""
    return here().find(name)


def living(prefix: str) -> list[Pid]:
    """Everybody whose name begins so."""
    return here().living(prefix)


def lives(prefix: str) -> dict[str, int]:
    """How many processes have had each name that begins so."""
    return here().lives(prefix)


def is_alive(pid: Pid) -> bool:
    return here().is_alive(pid)


def exit(server: Server, reason: Reason) -> None:
    """Ask a process to end. Only KILL cannot be trapped."""
    pid = server if isinstance(server, Pid) else here().find(server)
    if pid is None:
        return
    if reason == KILL:
        here().kill(pid)
    else:
        loop = here().loop
        here().post(pid, ExitSignal(loop.pid if loop else None, reason))


def join(pid: Pid, timeout: float | None = None) -> Reason | None:
    """Wait for the end of a process: its reason, or None if it still lives after `timeout`. Needs no mailbox."""
    return here().join(pid, timeout)


def monitor(pid: Pid) -> Ref:
    """Get a Down, once, when that process ends; at once, with "noproc", if it is not there."""
    ref, notify = _loop().open_monitor()
    here().watch(pid, notify)
    return ref


def demonitor(ref: Ref) -> None:
    """No Down after this, not even one that already waits in the mailbox."""
    _loop().close_monitor(ref)


def link(pid: Pid) -> None:
    """Tie two lives: if one ends abnormally so does the other, unless it traps exits."""
    _loop().link(pid)
    here().post(pid, Link(me()))


def unlink(pid: Pid) -> None:
    _loop().unlink(pid)
    here().post(pid, Unlink(me()))


def send_after(seconds: float, message: object) -> Ref:
    """Send oneself a message later."""
    return _loop().start_timer(seconds, message)


def cancel_timer(ref: Ref) -> bool:
    """True if it was still to come; its message does not come after this, even if it already waits in the mailbox."""
    return _loop().cancel_timer(ref)


def _loop() -> Inside:
    loop = here().loop
    if loop is None:
        raise RuntimeError("this needs a mailbox: it can be asked from inside a process only")
    return loop


def birth_of(server: Which, args: tuple[object, ...], name: str | None, prefix: str, resources: Resources) -> Birth:
    loop = here().loop
    return Birth(server, args, name, prefix, loop.pid if loop else None, resources)


def address(server: Server) -> Pid:
    """The pid to ask, which must be there and be another than oneself."""
    pid = server if isinstance(server, Pid) else here().find(server)
    if pid is None:
        raise NoProc(server, NOPROC)
    loop = here().loop
    if loop is not None and loop.pid == pid:
        raise RuntimeError(f"{pid} calls itself, and would wait for ever")
    return pid


def _post(server: Server, envelope: Envelope) -> None:
    pid = server if isinstance(server, Pid) else here().find(server)
    if pid is not None:
        here().post(pid, envelope)
