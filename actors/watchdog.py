"""Watchdog: sees that a model server makes no progress, and ends it. Looks at progress files, and asks nobody.

A step that never returns, a deadlock and a stopped process look alive to everything that asks whether a process exists.
What ends them is a signal to the process: a stopped one would not take a message. It is asked for its threads' stacks
first, in a file beside its progress, and killed at the next look. Whatever it says if it wakes up bears an old epoch.
Time in which it got no core does not count.
"""

import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.envelope import Down
from actors.genserver import GenServer, NoReply, Reply
from actors.node import call, send_after
from actors.pid import From, Pid, Server
from actors.progress import Glance, glance, has_writer
from actors.root_watch import RootWatch
from actors.starvation import Silence, waits_of
from actors.system_config import SystemConfig

log = logging.getLogger(__name__)
LOOKS_A_ROOT = 4  # every so many looks, one for the root supervisor


@dataclass(frozen=True, slots=True)
class WatchdogStats:
    num_looks: int
    kills: tuple[tuple[str, float], ...]  # whose progress file, and how many seconds it had shown no progress


@dataclass(frozen=True, slots=True)
class _Stats: ...


@dataclass(frozen=True, slots=True)
class _Look: ...


def stats(server: Server) -> WatchdogStats:
    answer = call(server, _Stats())
    assert isinstance(answer, WatchdogStats)
    return answer


class Watchdog(GenServer):
    def init(self, config: SystemConfig, is_in_tree: bool = True) -> None:
        self.directory = Path(config.directory) / "progress"
        self.seconds = config.watch_seconds
        self.root = RootWatch(config, is_in_tree)
        self.num_looks = 0
        self.kills: list[tuple[str, float]] = []
        self.suspects: set[str] = set()  # asked for their stacks at the last look
        self.silences: dict[str, Silence] = {}  # as of the last look
        send_after(self.seconds, _Look())

    def handle_call(self, message: object, from_: From) -> Reply:
        return Reply(WatchdogStats(self.num_looks, tuple(self.kills)))

    def handle_info(self, message: object) -> NoReply:
        match message:
            case _Look():
                self.look(time.monotonic())
                if self.num_looks % LOOKS_A_ROOT == 0:
                    self.root.look()
                send_after(self.seconds, _Look())
            case Down():
                self.root.down(message)
            case Pid() | None:
                self.root.found(message)
        return NoReply()

    def look(self, now: float) -> None:
        self.num_looks += 1
        suspects, silences = set[str](), dict[str, Silence]()
        for path in sorted(self.directory.glob("*")) if self.directory.is_dir() else ():
            seen = glance(path)
            if seen is None or path.suffix == ".stacks":
                continue
            silence = silences[path.name] = self.silence_of(path.name, seen)
            if not seen.is_stuck(now - silence.starved_seconds) or not has_writer(path):
                continue
            if path.name in self.suspects:
                self.end(path.name, seen, now)
            else:
                suspects.add(path.name)
                with suppress(ProcessLookupError):
                    os.kill(seen.process_id, signal.SIGUSR1)
        self.suspects, self.silences = suspects, silences

    def silence_of(self, name: str, seen: Glance) -> Silence:
        """The one of the last look, if it still lasts."""
        before = self.silences.get(name)
        if before is None or before.since != seen.beat:
            return Silence(seen.beat)
        return before.still(waits_of(seen.process_id))

    def end(self, name: str, seen: Glance, now: float) -> None:
        silent = now - (seen.began if seen.began is not None else seen.beat)
        log.error("%s shows no progress for %.1f s and is killed (process %d)", name, silent, seen.process_id)
        self.kills.append((name, silent))
        with suppress(ProcessLookupError):
            os.kill(seen.process_id, signal.SIGKILL)
