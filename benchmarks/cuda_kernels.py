"""The kernels of a model's products compiled by as many processes as there are cores, before anything is measured.

A start that finds no kernels on the disk compiles them one after the other, since the compiler takes one text of a
process at a time; on a fresh machine a benchmark of three models would spend most of its time so.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import mlx.core as mx

from benchmarks.cuda_models import CONFIGS, engine_of, made_up
from engine.config import ModelConfig
from engine.kernels.choose import choose
from engine.kernels.cuda import CudaKernels, compiler, shortcut, source, warming
from engine.kernels.cuda.source import Launcher

MAX_ROWS, MAX_TOKENS = 256, 2048


def compile_all() -> None:
    began = time.perf_counter()
    found = {text: None for config in CONFIGS.values() for text in texts(config)}
    missing = [text for text in found if not compiler.place_of(text).exists()]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_one, missing))
    seconds = time.perf_counter() - began
    print(f"{len(found)} kernels of {len(CONFIGS)} models, {len(missing)} not on the disk: {seconds:.0f} s", flush=True)


def compile_one(text: str) -> None:
    compiler.machine_code(text)


def texts(config: ModelConfig) -> list[str]:
    """What a start would compile for products, gathered in a start that launches nothing."""
    gathered: list[str] = []

    def gather(text: str) -> bytes:
        gathered.append(text)
        return b""

    def launch(self: Launcher, name: str, code: bytes, inputs: Any, grid: Any, shapes: Any, dtypes: Any, _: Any) -> Any:
        return [mx.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    kept = source.machine_code, Launcher.launch, shortcut.is_open
    source.machine_code, Launcher.launch = gather, launch  # type: ignore[assignment, method-assign]
    shortcut.is_open = lambda: False  # type: ignore[assignment]
    try:
        model = made_up(replace(config, num_layers=1))
        kernels = CudaKernels(model.config, 16, "never")
        halves = kernels.halves(kernels.prepare(model.weights).layers[0], 0)
        for rows in {*range(1, MAX_ROWS + 1), *range(64, MAX_TOKENS + 1, 64)}:
            is_common = rows in warming.FEW_AND_TILES or rows % 64 == 0
            warming.compile_products(halves, rows, warming.COMMON_RANKS if is_common else ())
    finally:
        source.machine_code, Launcher.launch, shortcut.is_open = kept  # type: ignore[method-assign]
    return gathered


def start_all() -> None:
    """One layer is enough: kernels are the same for all."""
    for name, config in CONFIGS.items():
        model = made_up(replace(config, num_layers=1))
        for expand in ("never", "auto"):
            began = time.perf_counter()
            kernels = choose(model.config, model.weights, 16, expand=expand)  # type: ignore[arg-type]
            engine_of(model, kernels, 64, 512)
            print(f"{name}, expand={expand}: {time.perf_counter() - began:.1f} s until it serves", flush=True)
