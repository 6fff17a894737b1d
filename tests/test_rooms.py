"""Imports go one way through the house: genserve, deploy -> actors -> loaders -> engine. Read from the source."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("engine", "loaders", "actors", "deploy")  # each may import itself and what stands before it
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")) + sorted(ROOT.glob("*.py"))
NOT_FOR_THE_ENGINE = {
    *("ray", "asyncio", "time", "datetime", "os", "io", "pathlib", "shutil", "tempfile", "socket", "subprocess"),
    *("threading", "multiprocessing", "concurrent", "signal", "logging", "random", "secrets"),
}
WEB = {"fastapi", "starlette", "uvicorn", "httpx", "h11"}
ARRAYS = {"mlx", "mlx_lm"}
SLOW_TO_IMPORT = WEB - {"starlette"} | ARRAYS | {"numpy", "tokenizers"}
LIGHT = (  # what most processes of a system run or carry with them, a dozen of them at every start
    *("actors.tree", "actors.registry", "actors.request_server", "actors.handle", "actors.watchdog"),
    *("deploy.http.door_config", "deploy.jobs.owner"),
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> tuple[tuple[str, int], ...]:
    """The modules that a file imports, anywhere in it, with their lines."""
    return tuple(imports_of(path))


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{relative(path)}:{node.lineno} imports by a relative name"
            yield node.module or "", node.lineno


def imported_at_once(path: Path) -> Iterator[str]:
    """The modules that are imported with a file: not those inside of functions, or for types alone."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name, _ in imported(path)}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_from_its_room_and_those_below(path: Path) -> None:
    room = room_of(path)
    allowed = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else (*ROOMS, "genserve")
    forbidden = {*ROOMS, "genserve", "tests", "benchmarks", "examples"} - set(allowed)
    if room == "deploy":
        forbidden -= {"genserve"}  # the command line stands beside the face
    wrong = [
        f"{relative(path)}:{line} imports {name}" for name, line in imported(path) if name.split(".")[0] in forbidden
    ]
    assert not wrong


def test_no_two_files_need_each_other() -> None:
    """Not even for the names of types."""
    graph = {module_of(path): {name for name, _ in imported(path)} for path in FILES if path.name != "__init__.py"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) == "engine"], ids=relative)
def test_the_engine_knows_no_clock_no_files_and_no_processes(path: Path) -> None:
    found = packages(path) & NOT_FOR_THE_ENGINE
    if relative(path).startswith("engine/kernels/"):
        found -= {"os", "pathlib", "logging"}  # a column finds its library, counts cores, and says what it left out
    if relative(path) == "engine/kernels/cuda/compiler.py":
        found -= {"subprocess"}  # NVRTC takes one text of a process at a time; two threads are no faster than one
    assert not found
    calls = (node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))
    assert "open" not in {call.id for call in calls if isinstance(call, ast.Name)}


def test_ray_has_one_door() -> None:
    doors = {relative(path) for path in FILES if "ray" in packages(path)}
    assert {door for door in doors if not door.startswith("deploy/")} <= {"actors/process.py"}


def test_arrays_stay_in_the_engine_and_the_loaders() -> None:
    assert {room_of(path) for path in FILES if "mlx" in packages(path)} == {"engine", "loaders"}


def test_the_web_framework_stays_in_its_room() -> None:
    places = {relative(path) for path in FILES if packages(path) & WEB}
    assert all(place.startswith("deploy/http/") for place in places)


@pytest.mark.parametrize("name", LIGHT)
def test_a_process_that_only_passes_models_and_doors_on_imports_neither(name: str) -> None:
    files = {module_of(path): path for path in FILES}
    seen, to_read = set[str](), [name]
    while to_read:
        module = to_read.pop()
        parents = [part for part in (module.rpartition(".")[0],) if part]
        new = {*parents, *imported_at_once(files[module])} - seen if module in files else set[str]()
        seen |= new
        to_read += new
    assert "actors.birth" in seen
    assert not {module.split(".")[0] for module in seen} & SLOW_TO_IMPORT


def test_the_faces_of_rooms_hold_no_logic() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            body = tree_of(path).body
            plain = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
            assert all(isinstance(node, plain) for node in body), relative(path)
