"""Who takes launches over from MLX, without a GPU: what is noted of them, and that they are given back."""

import mlx.core as mx
import pytest

from engine.kernels.cuda import driver
from engine.kernels.cuda.recording import Arena, Recording, Taken
from engine.kernels.cuda.source import Launcher
from engine.kernels.cuda.warming import Gathering


class HostArena(Arena):
    """Addresses, and no memory."""

    def take(self, num_bytes: int) -> tuple[int, int]:
        return num_bytes, 4096

    def __del__(self) -> None:
        pass


def gate() -> Launcher:
    return Launcher("gate", [], ["both"], ["out"], {"WIDTH": 64}, threads=128)


def call(launcher: Launcher, rows: int) -> list[mx.array]:
    both = mx.zeros((rows, 128), mx.bfloat16)
    return launcher([both], (rows, 1, 1), [(rows, 64)], [mx.bfloat16], rows=rows)


def test_gathering_notes_each_kernel_once_and_carries_none_out() -> None:
    launcher = gate()
    with Gathering() as gathered:
        assert [call(launcher, rows)[0].shape for rows in (1, 8, 300)] == [(1, 64), (8, 64), (300, 64)]
    (text,) = gathered.texts.values()
    assert "int rows" in text and "WIDTH = 64" in text
    assert Launcher.recorder is None


def test_a_recording_writes_down_what_is_launched_and_gives_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launcher, "machine", lambda self, *_: ("gate", b"code"))
    monkeypatch.setattr(driver, "function", lambda *_: "a function")
    with Recording(HostArena()) as recording:
        (given,) = call(gate(), 3)
    assert isinstance(given, Taken) and given.shape == (3, 64)
    (written,) = recording.written
    assert (written.function, written.grid, written.arguments[1:]) == ("a function", (3, 1, 1), [4096, 3, 0])


def test_one_recorder_has_the_launches_at_a_time() -> None:
    with Gathering(), pytest.raises(AssertionError), Gathering():
        pass
    assert Launcher.recorder is None
