"""Servers for the tests of processes: they do what they are told, and wait to be told."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from actors.envelope import Down, ExitSignal
from actors.exits import Reason
from actors.genserver import Continue, GenServer, Ignore, NoReply, Reply, Started, Stop
from actors.node import call, cancel_timer, demonitor, link, me, monitor, reply, send_after, spawn, spawn_link, unlink
from actors.pid import From, Pid


@dataclass(frozen=True, slots=True)
class Crash:
    why: str = "boom"


@dataclass(frozen=True, slots=True)
class Block:
    """Be at work, in a callback, for that long."""

    seconds: float


class Echo(GenServer):
    """Answers, keeps what it is sent, and crashes on request."""

    def init(self, *seen: object) -> Started:
        self.seen: list[Any] = list(seen)
        self.open: list[From] = []
        return None

    def handle_call(self, message: Any, from_: From) -> Reply | NoReply | Stop:
        match message:
            case "seen":
                return Reply(self.seen)
            case "os_pid":
                return Reply(os.getpid())
            case "thread":
                return Reply(threading.current_thread().name)
            case "me":
                return Reply(me())
            case "caller":
                return Reply(from_.caller)
            case "later":
                self.open.append(from_)
                return NoReply()
            case "stop":
                return Stop("normal", "bye")
            case "bad":
                return "not an answer"  # type: ignore[return-value]
            case "lock":
                return Reply(threading.Lock())
            case ("call", pid, inner):
                return Reply(call(pid, inner))
            case ("try", pid, inner, timeout):
                try:
                    return Reply(call(pid, inner, timeout))
                except Exception as error:
                    return Reply((type(error).__name__, getattr(error, "reason", None)))
            case ("monitor", pid):
                return Reply(monitor(pid))
            case ("demonitor", ref):
                demonitor(ref)
            case ("link", pid):
                link(pid)
            case ("unlink", pid):
                unlink(pid)
            case ("spawn_link", server, *args):
                return Reply(spawn_link(server, *args))
            case ("spawn", server, *args):
                return Reply(spawn(server, *args))
            case ("send_after", seconds, inner):
                return Reply(send_after(seconds, inner))
            case ("cancel", ref):
                return Reply(cancel_timer(ref))
            case ("answer", from_, value):
                reply(from_, value)
            case "open":
                return Reply(self.open.pop(0))
            case Crash(why):
                raise ValueError(why)
            case Block(seconds):
                time.sleep(seconds)
                return Reply("done")
        return Reply(message)  # an echo, also of what was only to be done

    def handle_cast(self, message: Any) -> NoReply | Stop:
        match message:
            case Crash(why):
                raise ValueError(why)
            case Block(seconds):
                time.sleep(seconds)
            case ("stop", reason):
                return Stop(reason)
            case ("answer", value):
                reply(self.open.pop(0), value)
            case _:
                self.seen.append(message)
        return NoReply()

    def handle_info(self, message: Any) -> NoReply:
        if isinstance(message, Crash):
            raise ValueError(message.why)
        self.seen.append((message.pid, message.reason) if isinstance(message, Down) else message)
        return NoReply()


class Trapper(Echo):
    """Exits are messages to it, and it has a last word."""

    trap_exit = True

    def handle_info(self, message: Any) -> NoReply:
        match message:
            case ExitSignal(sender, reason):
                self.seen.append(("exit", sender, reason))
                return NoReply()
        return super().handle_info(message)

    def terminate(self, reason: Reason) -> None:
        for each in self.seen:
            if callable(each):
                each(reason)


class Loader(Echo):
    """Starts at once, and loads afterwards."""

    def init(self, *seen: object) -> Continue:
        super().init(*seen)
        return Continue("load")

    def handle_continue(self, value: object) -> NoReply:
        self.seen.append(value)
        return NoReply()


class Unwilling(GenServer):
    """Comes to life as its argument says."""

    def init(self, how: str) -> Started:
        match how:
            case "ignore":
                return Ignore()
            case "stop":
                return Stop("no_reason_to_live")
            case "raise":
                raise OSError("no such file")
            case "wrong":
                return "wrong"  # type: ignore[return-value]
        return None


class Sleeper(Echo):
    """Asked to end, it waits for an answer that nobody gives. Its argument is whom it asks: an Echo."""

    trap_exit = True

    def terminate(self, reason: Reason) -> None:
        silent: Pid = self.seen[0]
        call(silent, "later", timeout=None)
