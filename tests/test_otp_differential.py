"""Our supervisor against the real one: the same random schedules of exits, failing starts and calls, event for event.

Erlang runs `tests/otp_oracle.erl`; ours runs inline. Both print what they did, and the lines must be equal.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors import sys
from actors.children import Refused
from actors.exits import KILL, Reason, StartFailed
from actors.genserver import GenServer, Ignore, Started, Stop
from actors.inline import Inline
from actors.node import cast, exit, is_alive, join, spawn
from actors.pid import Pid
from actors.supervision import ChildSpec, Policy
from actors.supervisor import (
    Supervisor,
    count_children,
    delete_child,
    restart_child,
    start_child,
    terminate_child,
    which_children,
)

NUM_SCHEDULES = 1000
IDS = ["a", "b", "c", "d", "e"]
REASONS = ["normal", "shutdown", "{shutdown,x}", "boom", "kill"]

pytestmark = pytest.mark.skipif(shutil.which("erl") is None, reason="needs Erlang: apt-get install erlang-base")


@dataclass(frozen=True, slots=True)
class Row:
    """A child of a schedule."""

    id: str
    restart: Any
    shutdown: Any
    significant: bool

    @property
    def erlang(self) -> str:
        shutdown = "brutal_kill" if self.shutdown == "brutal_kill" else 5000
        return f"{{{self.id},{self.restart},{shutdown},{str(self.significant).lower()}}}"

    def spec(self, world: World) -> ChildSpec:
        return ChildSpec(self.id, (Child, world, self.id), self.restart, self.shutdown, significant=self.significant)


@dataclass(frozen=True, slots=True)
class Schedule:
    policy: Policy
    rows: list[Row]
    plans: dict[str, list[str]]
    ops: list[tuple[str, Any]]

    @property
    def erlang(self) -> str:
        flags = f"{{{self.policy.strategy},{self.policy.max_restarts},{self.policy.auto_shutdown}}}"
        rows = ",".join(row.erlang for row in self.rows)
        plans = ",".join(f"{{{id},[{','.join(plan)}]}}" for id, plan in self.plans.items())
        return f"{{{flags},[{rows}],[{plans}],[{','.join(map(op_in_erlang, self.ops))}]}}."


def op_in_erlang(op: tuple[str, Any]) -> str:
    match op:
        case ("exits", exits):
            return "{exits,[" + ",".join(f"{{{id},{reason}}}" for id, reason in exits) + "]}"
        case ("plan", (id, plan)):
            return f"{{plan,{id},[{','.join(plan)}]}}"
        case ("start", row):
            return f"{{start,{row.erlang}}}"
        case (verb, id):
            return f"{{{verb},{id}}}"


def draw(rng: random.Random) -> Schedule:
    strategy: Any = rng.choice(["one_for_one", "one_for_all", "rest_for_one"])
    auto: Any = rng.choice(["never", "any_significant", "all_significant"])
    policy = Policy(strategy, rng.choice([0, 1, 2, 3, 5, 20]), 3600.0, auto)

    def row(id: str) -> Row:
        restart = rng.choice(["permanent", "transient", "temporary"])
        significant = auto != "never" and restart != "permanent" and rng.random() < 0.5
        return Row(id, restart, rng.choice([5.0, 5.0, "brutal_kill"]), significant)

    def plan() -> list[str]:
        return rng.choices(["fail", "ignore", "start"], weights=[6, 1, 3], k=rng.randint(1, 5))

    def storm() -> list[tuple[str, Any]]:
        """Several die at once, and some of them do not come back at once."""
        plans = [("plan", (id, plan())) for id in rng.sample(IDS, rng.choice([1, 2]))]
        return [*plans, ("exits", [(id, rng.choice(REASONS)) for id in rng.sample(IDS, rng.choice([2, 3, 5]))])]

    def op() -> tuple[str, Any]:
        verb = rng.choices(["exits", "plan", "terminate", "restart", "delete", "start"], weights=[9, 2, 3, 3, 2, 2])[0]
        match verb:
            case "exits":
                return verb, [(id, rng.choice(REASONS)) for id in rng.sample(IDS, rng.choice([1, 1, 1, 2, 3]))]
            case "plan":
                return verb, (rng.choice(IDS), plan())
            case "start":
                return verb, row(rng.choice(IDS))
            case _:
                return verb, rng.choice(IDS)

    rows = [row(id) for id in rng.sample(IDS, rng.randint(0, 4))]
    plans = {id: plan() for id in rng.sample(IDS, 1)} if rng.random() < 0.15 else {}
    ops = [each for _ in range(rng.randint(3, 12)) for each in (storm() if rng.random() < 0.2 else [op()])]
    return Schedule(policy, rows, plans, ops)


@dataclass(frozen=True, slots=True)
class Die:
    reason: Reason


class World:
    """What all children of one schedule share: what was planned for their starts, and what happened."""

    def __init__(self, plans: dict[str, list[str]]) -> None:
        self.plans = {id: list(plan) for id, plan in plans.items()}
        self.starts: dict[str, int] = defaultdict(int)
        self.events: list[str] = []

    def take_events(self) -> str:
        events, self.events = self.events, []
        return " ".join(events)


class Child(GenServer):
    trap_exit = True

    def init(self, world: World, id: str) -> Started:
        self.world, self.id, self.is_dying = world, id, False
        match world.plans[id].pop(0) if world.plans.get(id) else "start":
            case "fail":
                world.events.append(f"{id} fails")
                return Stop("boom")
            case "ignore":
                world.events.append(f"{id} ignored")
                return Ignore()
        world.starts[id] += 1
        world.events.append(f"{id} starts {world.starts[id]}")
        return None

    def handle_cast(self, message: Die) -> Stop:
        self.is_dying = True
        return Stop(message.reason)

    def terminate(self, reason: Reason) -> None:
        if not self.is_dying:
            self.world.events.append(f"{self.id} stops")


def run(schedule: Schedule) -> str:
    world = World(schedule.plans)
    with Inline() as node:
        try:
            sup = spawn(Supervisor, schedule.policy, [row.spec(world) for row in schedule.rows])
        except StartFailed as failed:
            assert isinstance(failed.reason, tuple) and isinstance(failed.reason[1], tuple)
            return f"not_started {failed.reason[1][1]} [{world.take_events()}]"
        node.run()
        trace = [report("up", sup, world)]
        for op in schedule.ops:
            result = do(node, sup, world, op)
            node.run()
            if not is_alive(sup):
                trace.append(f"{result} down {node.reasons[sup]} [{world.take_events()}]")
                return " | ".join(trace)
            trace.append(report(result, sup, world))
        exit(sup, "shutdown")
        node.run()
        trace.append(f"end {node.reasons[sup]} [{world.take_events()}]")
        return " | ".join(trace)


def do(node: Inline, sup: Pid, world: World, op: tuple[str, Any]) -> str:
    match op:
        case ("exits", exits):
            pids = {child.id: child.pid for child in which_children(sup)}
            doomed = [(pid, reason) for id, reason in exits if (pid := pids.get(id)) is not None]
            sys.suspend(sup)
            for pid, reason in doomed:
                doom(pid, reason)
                join(pid)
            sys.resume(sup)
            return str(len(doomed))
        case ("plan", (id, plan)):
            world.plans[id] = list(plan)
            return "planned"
        case ("start", row):
            return answer(lambda: start_child(sup, row.spec(world)))
        case ("restart", id):
            return answer(lambda: restart_child(sup, id))
        case ("terminate", id):
            return answer(lambda: terminate_child(sup, id), "ok")
        case ("delete", id):
            return answer(lambda: delete_child(sup, id), "ok")
        case _:
            raise AssertionError(op)


def doom(pid: Pid, reason: str) -> None:
    match reason:
        case "kill":
            exit(pid, KILL)
        case "{shutdown,x}":
            cast(pid, Die(("shutdown", "x")))
        case _:
            cast(pid, Die(reason))


def answer(ask: Callable[[], object], done: str | None = None) -> str:
    try:
        value = ask()
    except Refused as refused:
        match refused.reason:
            case ("already_started", _):
                return "already_started"
            case "already_present" | "running" | "restarting" | "not_found":
                return str(refused.reason)
            case _:
                return "failed"
    return done or ("ignored" if value is None else "started")


def report(result: str, sup: Pid, world: World) -> str:
    children = sorted(f"{child.id}:{world.starts[child.id] if child.pid else 'down'}" for child in which_children(sup))
    counts = count_children(sup)
    return f"{result} ({' '.join(children)}) {counts.active}/{counts.specs} [{world.take_events()}]"


def oracle(schedules: list[Schedule], folder: Path) -> list[str]:
    source = Path(__file__).with_name("otp_oracle.erl")
    (folder / "schedules").write_text("\n".join(schedule.erlang for schedule in schedules))
    program = (
        f'{{ok, _}} = compile:file("{source}", [{{outdir, "{folder}"}}]), '
        f'code:add_path("{folder}"), otp_oracle:main("{folder}/schedules", "{folder}/traces").'
    )
    subprocess.run(["erl", "-noshell", "-eval", program], check=True, timeout=120, capture_output=True)
    return (folder / "traces").read_text().splitlines()


def test_supervisor_does_what_erlangs_supervisor_does_on_random_schedules(tmp_path: Path) -> None:
    rng = random.Random(20260101)
    schedules = [draw(rng) for _ in range(NUM_SCHEDULES)]
    theirs = oracle(schedules, tmp_path)
    assert len(theirs) == NUM_SCHEDULES
    differences = [
        f"{schedule.erlang}\n  erlang: {trace}\n  ours:   {ours}"
        for schedule, trace in zip(schedules, theirs, strict=True)
        if trace != (ours := run(schedule))
    ]
    assert not differences, f"{len(differences)} differ\n" + "\n".join(differences[:3])


def test_schedules_reach_every_kind_of_event() -> None:
    rng = random.Random(20260101)
    text = "\n".join(run(draw(rng)) for _ in range(300))
    for event in [
        "fails", "ignored", "stops", "down shutdown", "not_started", "already_started", "already_present", "running",
        "not_found", "failed", "end shutdown",
    ]:  # fmt: skip
        assert event in text
