"""Process: the one door to Ray. Starts processes in actors and carries messages; decides nothing about restarts.

A process is a detached actor that Ray never restarts, and whose calls Ray never repeats: there is one restart
authority, the supervisor, and what it restarts has a new pid, which fences the old one. A monitor is a pending call:
a process that ends by itself answers it with its last words; where it could not speak Ray fails the call, some
milliseconds after the death, and the reason is "killed".
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

# Read by Ray while it is imported. Without the first, `uv run` makes every worker start through uv; without the second,
# a process for which no GPU is set aside cannot see the one that is there; without the third, our processes have the
# lowest priority but four, and whatever else computes on a small machine leaves the model its crumbs.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray import _raylet, cloudpickle
from ray._private import node, ray_constants, services, state, worker
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError
from ray.experimental import internal_kv
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import names
from actors.birth import Birth, label_of
from actors.envelope import Envelope
from actors.exits import KILLED, NOPROC, Died, NoProc, Reason, StartFailed, Timeout
from actors.host import Host, Packed
from actors.loop import Loop
from actors.node import enter, leave
from actors.own_ray import lean, let_workers_import_us
from actors.packing import packed, value_of
from actors.peer import Peer
from actors.pid import From, Pid
from actors.shared_table import SharedTable
from actors.switchboard import Switchboard, Unplugged
from actors.transport import Cancel, Notify
from actors.vigil import Vigil

log = logging.getLogger(__name__)
NAMESPACE = "genserve"
MAX_PENDING_CALLS = 10_000  # on one process, its monitors among them
PING_SECONDS = 1.0
KILL_SECONDS = 0.2
LOOPBACK = ("127.", "localhost:", "[::1]:")
DEAD = 4  # ActorTableData.ActorState of Ray's protocol
UNREACHABLE_SECONDS = 0.1  # between two tries to watch a process that cannot be reached


def connect(address: str | None = None, *, include_dashboard: bool = False, **options: Any) -> None:
    """Start a Ray of our own on loopback, or join the one at `address` ("auto" finds it). `options` go to `ray.init`.

    Ray's ports let whoever has the token run code, so a Ray started here asks for the token, and listens on loopback.
    A program that has Ray already, as every actor has, keeps it.
    """
    if ray.is_initialized():
        enter(_outside)
        return
    settings: dict[str, Any] = {"log_to_driver": False, "namespace": NAMESPACE, "logging_level": "error", **options}
    if address is None:
        let_workers_import_us()
        _stay_on_loopback()
        settings = {"include_dashboard": include_dashboard, **settings}
    elif address.startswith(LOOPBACK):
        _stay_on_loopback()
    with lean(node.Node, services) if address is None and not include_dashboard else nullcontext():
        ray.init(address, **settings)
    worker.print_to_stdstream = _keep_quiet
    _outside.is_connected_by_us = True
    enter(_outside)


def vigil(act: Callable[[], None]) -> AbstractContextManager[None]:
    """Within its block `act` is called if the Ray that we are on dies."""
    session: Any = worker._global_node
    if session is None:  # a client of Ray's own client server knows no more than that
        return nullcontext()
    return Vigil(
        session.gcs_address, act, next((info.process for info in session.all_processes.get("raylet", ())), None)
    )


def disconnect() -> None:
    """Leave; a Ray that `connect` started ends with it."""
    leave(_outside)
    _outside.close()
    if _outside.is_connected_by_us:
        ray.shutdown()
        _outside.is_connected_by_us = False


class RayNode:
    """Ray, seen from one program: from inside a process (`host`), or from a program that calls in."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host
        self._sender = uuid.uuid4().hex
        self._peers: dict[Pid, Peer] = {}
        self._beginning: dict[Pid, Any] = {}  # what their `init` comes to
        self._table = SharedTable(internal_kv, NAMESPACE)
        self._switchboard: Switchboard | None = None
        self._plugging = threading.Lock()
        self.is_connected_by_us = False

    def listen(self) -> None:
        """Be reached directly. Where that is not to be, all messages come by Ray."""
        assert self._host is not None
        try:
            self._local().listen(str(self._host.pid), self._host.hear)
        except OSError as trouble:
            log.warning("%s has no socket, and hears by Ray alone: %s", self._host.pid, trouble)
        else:
            _raylet.sys = self._host.rest  # type: ignore[attr-defined]

    def close(self) -> None:
        self._peers.clear()
        if self._switchboard is not None:
            self._switchboard.close()
            self._switchboard = None

    @property
    def loop(self) -> Loop | None:
        return self._host.loop if self._host else None

    def now(self) -> float:
        return time.monotonic()

    def begin(self, birth: Birth, notify: Notify | None, timeout: float | None) -> Pid:
        self._check()
        pid = self._pid_for(birth)
        resources = {"num_cpus": birth.resources.cpus, "num_gpus": birth.resources.gpus}
        options = {"name": str(pid), "scheduling_strategy": _on_this_machine(), **resources, **_OPTIONS}
        actor = _actor().options(**options).remote(pid, birth, RayNode, _pack, _vanish)
        peer = self._peers[pid] = self._peer_at(pid, actor)
        if birth.name is not None:
            names.born(pid, self._table)
        self._beginning[pid] = actor.started.remote()
        if notify is not None:
            self._listen(pid, peer, notify)
        return pid

    def finish(self, pid: Pid, timeout: float | None) -> None:
        failed = self._wait_for_start(pid, timeout)
        if failed is not None:
            raise failed

    def find(self, name: str) -> Pid | None:
        pid = names.latest(name, self._table)
        return pid if pid is not None and self.is_alive(pid) else None

    def living(self, prefix: str) -> list[Pid]:
        # Not only the program's own namespace: one that had its Ray before it joined us may be in another.
        ours = [actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE]
        pids = [Pid.parse(name) for name in ours if name.startswith(prefix) and "/" in name]
        return sorted(pid for pid in pids if self.is_alive(pid))

    def lives(self, prefix: str) -> dict[str, int]:
        return names.lives(prefix, self._table)

    def is_alive(self, pid: Pid) -> bool:
        try:
            peer = self._peer(pid)
            said = peer.says_it_lives(PING_SECONDS)
            return bool(ray.get(peer.actor.is_alive.remote(), timeout=PING_SECONDS)) if said is None else said
        except NoProc:
            return False
        except (TimeoutError, ActorUnavailableError):
            return True  # silent is not dead
        except RayActorError:
            self._peers.pop(pid, None)
            return False

    def post(self, pid: Pid, envelope: Envelope) -> None:
        self._check()
        if self._host is not None and pid == self._host.pid:
            self._host.loop.arrive(envelope)
            self._check()
            return
        try:
            self._peer(pid).tell(self._me, envelope)
        except NoProc:
            return

    def ask(self, pid: Pid, envelope: Envelope, timeout: float | None) -> Any:
        self._check()
        asked = self._living_peer(pid).ask(self._me, envelope)
        try:
            return value_of(pid, asked.result(timeout))
        except _FAILURES as error:
            asked.cancel()
            raise self._failure(pid, error) from None
        finally:
            self._check()

    async def ask_async(self, pid: Pid, envelope: Envelope, timeout: float | None) -> Any:
        if pid not in self._peers:  # to look for it takes time, which is not the event loop's
            await asyncio.to_thread(self._peer, pid)
        asked = asyncio.wrap_future(self._living_peer(pid).ask(self._me, envelope))
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asked may be gone
        # Waited for and not cancelled: what Ray was told to do cannot be taken back, its answer can be dropped.
        done, _ = await asyncio.wait({asked}, timeout=timeout)
        if not done:
            raise Timeout(pid, "timeout")
        try:
            return value_of(pid, asked.result())
        except _FAILURES as error:
            raise self._failure(pid, error) from None

    def answer(self, from_: From, value: object) -> None:
        self._check()
        if self._host is not None and from_.server == self._host.pid:
            self._host.reply(from_.ref, value)
            return
        try:
            self._peer(from_.server).actor.answer.remote(from_.ref, value)
        except NoProc:
            return

    def watch(self, pid: Pid, notify: Notify) -> None:
        try:
            self._listen(pid, self._peer(pid), notify)
        except NoProc:
            notify(pid, NOPROC)

    def join(self, pid: Pid, timeout: float | None) -> Reason | None:
        self._check()
        ended: Future[Reason] = Future()
        self.watch(pid, lambda _, reason: ended.set_result(reason))
        try:
            return ended.result(timeout)
        except TimeoutError:
            return None
        finally:
            self._check()

    def kill(self, pid: Pid) -> None:
        self._check()
        try:
            actor = self._peer(pid).actor
        except NoProc:
            return
        place = state.actors(actor._actor_id.hex())
        ray.kill(actor)
        if place and place["Pid"] and place["Address"]["NodeID"] == ray.get_runtime_context().get_node_id():
            _make_sure(place["Pid"])

    def schedule(self, seconds: float, fire: Callable[[], None]) -> Cancel:
        assert self._host is not None
        return self._host.schedule(seconds, fire)

    @property
    def _me(self) -> Pid | None:
        return self._host.pid if self._host else None

    def _check(self) -> None:
        if self._host is not None:
            self._host.check()

    def _pid_for(self, birth: Birth) -> Pid:
        if birth.name is not None:
            return names.claim(birth.name, self._table, self.is_alive)
        return Pid(f"{birth.prefix}{label_of(birth.server)}-{uuid.uuid4().hex[:12]}", 1)

    def _wait_for_start(self, pid: Pid, timeout: float | None) -> StartFailed | None:
        try:
            failed: StartFailed | None = ray.get(self._beginning.pop(pid), timeout=timeout)
            return failed
        except GetTimeoutError:
            self.kill(pid)
            return StartFailed("timeout")
        except RayActorError:
            return StartFailed(KILLED)

    def _peer(self, pid: Pid) -> Peer:
        peer = self._peers.get(pid)
        if peer is None:
            try:
                actor = ray.get_actor(str(pid), namespace=NAMESPACE)
            except ValueError:
                raise NoProc(pid, NOPROC) from None
            peer = self._peers.setdefault(pid, self._peer_at(pid, actor))
        return peer

    def _peer_at(self, pid: Pid, actor: Any) -> Peer:
        return Peer(actor, self._sender, _pack, lambda: self._local().dial(str(pid)))

    def _local(self) -> Switchboard:
        """The way to processes of this machine, which Ray's session has a directory for."""
        with self._plugging:
            if self._switchboard is None:
                session: Any = worker._global_node
                self._switchboard = Switchboard(Path(session.get_session_dir_path()) / NAMESPACE)
            return self._switchboard

    def _living_peer(self, pid: Pid) -> Peer:
        """Tells a process that was dead before it was asked from one that dies over the question."""
        peer = self._peer(pid)
        core: Any = worker.global_worker.core_worker  # type: ignore[attr-defined]
        if core.get_local_actor_state(peer.actor._actor_id) == DEAD:
            self._peers.pop(pid, None)
            raise NoProc(pid, NOPROC)
        return peer

    def _listen(self, pid: Pid, peer: Peer, notify: Notify) -> None:
        def on_end(words: Future[Reason]) -> None:
            error = words.exception()
            if isinstance(error, ActorUnavailableError):
                threading.Timer(UNREACHABLE_SECONDS, self._listen, (pid, peer, notify)).start()
                return
            self._peers.pop(pid, None)
            if error is None:
                peer.actor.heard.remote()
            notify(pid, words.result() if error is None else KILLED)

        peer.actor.watch.remote().future().add_done_callback(on_end)

    def _failure(self, pid: Pid, error: Exception) -> Exception:
        match error:
            case TimeoutError():
                return Timeout(pid, "timeout")
            case ActorUnavailableError():
                return Timeout(pid, "unreachable")  # it may have done what it was asked, or not
            case _:
                self._peers.pop(pid, None)
                return Died(pid, KILLED)


_outside = RayNode()

_FAILURES = (TimeoutError, RayActorError, Unplugged)
_OPTIONS = {
    "max_restarts": 0,
    "max_task_retries": 0,
    "max_concurrency": MAX_PENDING_CALLS,
    "lifetime": "detached",
    "namespace": NAMESPACE,
}


@cache
def _actor() -> Any:
    """A Host on Ray. Not made while this is imported: what Ray draws at random, the nursery's forks would share."""
    return ray.remote(Host)


def _pack(value: object) -> Packed:
    plain = packed(value)
    if plain is not None:
        return plain
    by_value: Packed = cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    return by_value


def _vanish() -> None:
    """End the actor that this runs in. Killed, as an exit would wait for the calls that will never be answered."""
    ray.kill(ray.get_runtime_context().current_actor)


def _make_sure(os_pid: int) -> None:
    """Ray asks the actor to go; one that is stopped or stuck does not hear it, and would keep its memory."""
    deadline = time.monotonic() + KILL_SECONDS
    while Path(f"/proc/{os_pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    with suppress(ProcessLookupError):
        os.kill(os_pid, signal.SIGKILL)


def _keep_quiet(data: object, ignore_prefix: bool) -> None:
    """In place of Ray's own, which writes the death of every process to standard output, where answers go."""


def _on_this_machine() -> NodeAffinitySchedulingStrategy:
    """A system shares files, so where Ray would take any machine, a process stands on that of whoever starts it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def _stay_on_loopback() -> None:
    """Ray takes an outside address for itself even where it is given an inside one, unless told it is on a laptop."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
