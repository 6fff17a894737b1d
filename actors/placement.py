"""Placement: which model server gets a request. By load, and by where its beginning and its adapter are already."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

from engine.request import Request

PREFIX_TOKENS = 64
MAX_TRACES = 4096


@dataclass(slots=True)
class Board:
    """One model server that takes requests, and those it has."""

    epoch: str
    max_choices: int
    ids: dict[str, int] = field(default_factory=dict)  # request -> its choices
    traces: OrderedDict[bytes, None] = field(default_factory=OrderedDict)  # beginnings and adapters it has seen
    num_choices: int = 0
    is_up: bool = False

    def has_room(self, num_choices: int) -> bool:
        """A request with more choices than the board takes goes to an empty one."""
        return self.is_up and (not self.ids or self.num_choices + num_choices <= self.max_choices)

    def put(self, request: Request) -> None:
        self.ids[request.id] = request.sampling.n
        self.num_choices += request.sampling.n
        for trace in traces(request):
            self.traces[trace] = None
            self.traces.move_to_end(trace)
        while len(self.traces) > MAX_TRACES:
            self.traces.popitem(last=False)

    def take(self, request_id: str) -> None:
        self.num_choices -= self.ids.pop(request_id, 0)

    def knows(self, request: Request) -> int:
        return sum(trace in self.traces for trace in traces(request))


def traces(request: Request) -> Iterable[bytes]:
    """What makes a request cheaper where it was before: its first tokens, and its adapter."""
    owner = f"{request.tenant}\0{request.adapter}".encode("utf-8", "replace")
    start = b"".join(token.to_bytes(4, "little") for token in request.prompt[:PREFIX_TOKENS])
    yield blake2b(owner + b"\0" + start, digest_size=8).digest()
    if request.adapter is not None:
        yield b"adapter " + owner


def place(request: Request, boards: Iterable[Board]) -> Board | None:
    """The board with the fewest choices, where each trace of the request weighs as much as a quarter of a board."""
    free = [board for board in boards if board.has_room(request.sampling.n)]

    def burden(board: Board) -> tuple[float, str]:
        return board.num_choices - board.knows(request) * board.max_choices / 4, board.epoch

    return free[0] if len(free) == 1 else min(free, key=burden, default=None)
