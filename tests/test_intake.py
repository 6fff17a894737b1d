"""Tensors that come into a device's memory by its own way are the ones of the file."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.kernels.intake import LEAST_BYTES, intake_for
from engine.refusal import BrokenFile
from loaders import mapped_file
from loaders import safetensors as files


class Slots:
    """An intake without a device: memory of few bytes, filled again and again."""

    def bring(self, num_bytes: int, fill: Callable[[NDArray[np.uint8], int], None]) -> mx.array:
        slot, parts = np.zeros(1 << 12, np.uint8), []
        for start in range(0, num_bytes, slot.size):
            part = slot[: min(slot.size, num_bytes - start)]
            fill(part, start)
            parts.append(part.copy())
        return mx.array(np.concatenate(parts).view(np.uint32))


def test_tensors_read_through_an_intake_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "intake_for", lambda size: Slots() if size % 4 == 0 else None)
    monkeypatch.setattr(mapped_file, "READ_BYTES", 1000)
    mx.random.seed(3)
    wanted = {
        "words": mx.random.randint(0, 1 << 30, (70, 33)).astype(mx.uint32),
        "halves": mx.random.normal((50, 64)).astype(mx.bfloat16),
        "odd": mx.random.normal((3, 5)).astype(mx.float16),
        "floats": mx.random.normal((9, 1000)),
    }
    files.save(tmp_path / "a.safetensors", wanted)
    found = files.open_tensors(tmp_path / "a.safetensors")
    assert all(
        found[name].dtype == array.dtype and mx.array_equal(found[name], array) for name, array in wanted.items()
    )


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    file = mapped_file.MappedFile(path)
    with pytest.raises(BrokenFile, match="changed while it was read"):
        file.fill(np.zeros(200, np.uint8), 0)


def test_small_tensors_and_machines_without_a_gpu_take_the_usual_way() -> None:
    assert intake_for(LEAST_BYTES - 4) is None
    assert mx.default_device().type == mx.DeviceType.gpu or intake_for(LEAST_BYTES) is None
