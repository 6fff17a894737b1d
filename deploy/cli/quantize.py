"""genserve quantize: a float checkpoint into MLX's format, of a few bits a weight."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from deploy.cli.progress import shown_progress
from engine.quantized import AFFINE_BITS, AFFINE_GROUPS
from loaders.quantize import quantize_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a directory, or a hub id")
    parser.add_argument("target", type=Path, help="a directory to make")
    parser.add_argument("--bits", type=int, help=f"{one_of(AFFINE_BITS)} (default: 4, or what the mode has)")
    parser.add_argument("--group-size", type=int, help=f"{one_of(AFFINE_GROUPS)} (default: 64, or what the mode has)")
    parser.add_argument("--mode", default="affine", help="affine, mxfp4, mxfp8 or nvfp4")


def run(arguments: argparse.Namespace) -> int:
    with shown_progress() as on_progress:
        quantize_checkpoint(
            arguments.source,
            arguments.target,
            bits=arguments.bits,
            group_size=arguments.group_size,
            mode=arguments.mode,
            on_progress=on_progress,
        )
    size = sum(file.stat().st_size for file in arguments.target.iterdir())
    print(f"{arguments.target}: {size / 1e6:.1f} MB")
    return 0


def one_of(numbers: Sequence[int]) -> str:
    """`one_of((2, 3, 4))` is "2, 3 or 4"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}"
