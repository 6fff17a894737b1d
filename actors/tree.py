"""Tree: who starts whom, as data. The root is found or started by whoever needs it; the first one wins.

    root supervisor          one_for_one
    +- registry              keys -> pids, for other programs, where they are to have a part in this
    +- models                one model server a replica, and spares
    +- requests              one request server a partition
    +- doors                 the HTTP server, where there is one
    +- handle                the public actor for programs that know only Ray, where there is a registry
    +- watchdog              sees progress stop

In a flat tree the root has the model servers and the request servers itself; their names are the same.

The children find each other by name, and again after a death, so none has to be started anew because another was.
With rest_for_one the death of the models' supervisor ended the request servers first; a root that was killed in the
middle of that left nobody to bring it back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.child import ChildInfo
from actors.exits import AlreadyStarted, CallFailed, Reason
from actors.genserver import NoReply, Started
from actors.messages import Forgive
from actors.node import spawn, whereis
from actors.pid import Pid, Server
from actors.supervision import ChildSpec, Policy, RestartWindow
from actors.supervisor import Supervisor, child_spec_of, which_children
from actors.sys import stop
from actors.system_config import ROOT, SystemConfig

STOP_SECONDS = 20.0
STOPPED: Reason = ("shutdown", "stopped")  # of a root that was meant to end; one that gives up says "shutdown"
ANSWER_SECONDS = 2.0  # of a supervisor that is asked for its children


class SteadySupervisor(Supervisor):
    """One that starts its children side by side, as they find each other by name, and that comes back among living
    children, and does not end them because another one fails just then.

    A supervisor whose first start fails ends what it has started, which is right where nothing was there before.
    Here it may have taken over a loaded model and running requests; the failing child is tried again instead, and
    counts as a restart.
    """

    is_starting = False

    def init(self, policy: Policy, specs: Sequence[ChildSpec] = ()) -> Started:
        assert policy.strategy == "one_for_one", "any other has an order"
        self.is_starting = True
        answer = super().init(policy, specs)
        self.is_starting = False
        failing = [child.spec.id for child in self.children if child.is_restarting]
        for id in failing:
            self._try_again(id)
        return None if failing else answer

    def terminate(self, reason: Reason) -> None:
        if not self.is_starting:
            super().terminate(reason)

    def _start_all(self, ids: Sequence[str]) -> tuple[str, Reason] | None:
        """All that can be started; of those that cannot, the first."""
        for id in ids:
            self.children.put(self.children.present(id).begin())
        return next(filter(None, [self._finish(self.children.present(id)) for id in ids]), None)


class ModelSupervisor(SteadySupervisor):
    """One that can be told that a death was a request's doing, and is not to be counted."""

    def handle_cast(self, message: object) -> NoReply:
        if isinstance(message, Forgive) and message.model not in self.forgiven():
            self._forgiven.append(message.model)
            self.window = forgiving(self.window)
        return NoReply()

    def forgiven(self) -> list[Pid]:
        """Those that were forgiven: several request servers tell of one death."""
        if not hasattr(self, "_forgiven"):
            self._forgiven: list[Pid] = []
        return self._forgiven


def forgiving(window: RestartWindow) -> RestartWindow:
    return replace(window, times=window.times[:-1])


def root_children(config: SystemConfig) -> tuple[ChildSpec, ...]:
    """The children of the root: begun in this order, ended in the reverse one."""
    registries = (ChildSpec("registry", ("actors.registry:Registry",)),) if config.is_public else ()
    handles = (ChildSpec("handle", ("actors.handle:HandleKeeper", config)),) if config.is_public else ()
    return (
        *registries,
        *(workers(config) if config.is_flat else supervisors(config)),
        *config.doors,
        *handles,
        ChildSpec("watchdog", ("actors.watchdog:Watchdog", config)),
    )


def supervisors(config: SystemConfig) -> tuple[ChildSpec, ...]:
    models = ("actors.tree:ModelSupervisor", policy_of(config), model_children(config, f"{ROOT}.models."))
    requests = ("actors.tree:SteadySupervisor", policy_of(config), request_children(config, f"{ROOT}.requests."))
    return ChildSpec("models", models, type="supervisor"), ChildSpec("requests", requests, type="supervisor")


def workers(config: SystemConfig) -> tuple[ChildSpec, ...]:
    return *model_children(config, f"{ROOT}."), *request_children(config, f"{ROOT}.")


def model_children(config: SystemConfig, prefix: str) -> tuple[ChildSpec, ...]:
    names, seconds = config.partition_names, config.gather_seconds
    start = ("actors.model_server:ModelServer", config.choice, config.directory, names, seconds)
    return tuple(
        ChildSpec(name.removeprefix(prefix), start, resources=config.resources, shutdown=2.0)
        for name in config.model_names
    )


def request_children(config: SystemConfig, prefix: str) -> tuple[ChildSpec, ...]:
    return tuple(
        ChildSpec(
            name.removeprefix(prefix), ("actors.request_server:RequestServer", config, number, True), shutdown=2.0
        )
        for number, name in enumerate(config.partition_names)
    )


def policy_of(config: SystemConfig) -> Policy:
    return Policy("one_for_one", config.max_restarts, config.max_seconds)


def start_root(config: SystemConfig) -> Pid:
    """The root supervisor: started, or found where another was quicker."""
    kind = "actors.tree:ModelSupervisor" if config.is_flat else "actors.tree:SteadySupervisor"
    try:
        return spawn(kind, policy_of(config), root_children(config), name=ROOT, timeout=None)
    except AlreadyStarted as taken:
        return taken.pid


def stop_root() -> bool:
    """End everything, in reverse order; False if nothing ran."""
    root = whereis(ROOT)
    if root is None:
        return False
    stop(root, STOPPED, STOP_SECONDS)
    return True


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One process of the tree, as `genserve status` shows it."""

    id: str
    pid: str | None
    state: str
    restarts: int
    last_reason: Reason | None
    children: tuple["TreeNode", ...] = ()

    @property
    def last_words(self) -> str | None:
        return None if self.last_reason is None else str(self.last_reason)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "pid": self.pid,
            "state": self.state,
            "restarts": self.restarts,
            "last_reason": self.last_words,
            "children": [child.to_dict() for child in self.children],
        }


def status() -> TreeNode | None:
    """The tree as it is; None if nothing runs."""
    root = whereis(ROOT)
    if root is None:
        return None
    try:
        before = config_of(root).lives_before
    except CallFailed:  # it died, or is busy with a child
        return TreeNode("root", str(root), "busy", 0, None)
    return TreeNode("root", str(root), "running", restarts_of(root, before), None, children_of(root, before))


def config_of(root: Server, timeout: float = ANSWER_SECONDS) -> SystemConfig:
    """What a system was made from, read off its watchdog's spec."""
    config: SystemConfig = child_spec_of(root, "watchdog", timeout).start[1]
    return config


def restarts_of(pid: Pid, before: Mapping[str, int]) -> int:
    """An epoch counts the lives of a name, also those that an earlier supervisor restarted, or an earlier system."""
    return pid.epoch - before.get(pid.name, 0) - 1


def children_of(supervisor: Pid, before: Mapping[str, int]) -> tuple[TreeNode, ...]:
    try:
        return tuple(node_of(info, before) for info in which_children(supervisor, ANSWER_SECONDS))
    except CallFailed:
        return ()  # it died, or is busy with a child


def node_of(info: ChildInfo, before: Mapping[str, int]) -> TreeNode:
    below = children_of(info.pid, before) if info.type == "supervisor" and info.pid is not None else ()
    restarts = info.num_restarts if info.pid is None else max(info.num_restarts, restarts_of(info.pid, before))
    pid = None if info.pid is None else str(info.pid)
    return TreeNode(info.id, pid, info.state, restarts, info.last_reason, below)
