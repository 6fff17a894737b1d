"""engine/kernels/cpu/extension.py and setup.py: what happens where the C++ extension is absent or does not fit."""

import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from deploy.cli.main import main
from engine.kernels.choose import choose
from engine.kernels.cpu import extension, missing_reason
from tests.cpu_models import Numbers, make_weights
from tests.tiny import write_checkpoint


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture
def is_absent(monkeypatch):
    monkeypatch.setattr(extension.importlib.util, "find_spec", lambda name: None)


def test_without_the_extension_one_warning_says_how_to_get_it(is_absent, caplog):
    numbers = Numbers()
    with caplog.at_level(logging.WARNING):
        assert choose(numbers.config, make_weights(numbers), 16).name == "portable"
    assert len(caplog.records) == 1
    assert "slow path" in caplog.text and "C++20 compiler" in caplog.text and "pip install" in caplog.text


def test_without_the_extension_inspect_says_so_in_its_report(is_absent, capsys, tmp_path):
    write_checkpoint(tmp_path, "llama")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert report["kernels"] == "portable"
    assert "slow path" in report["kernels_note"] and "C++20 compiler" in report["kernels_note"]
    assert told.err == ""


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        (SimpleNamespace(mlx_version="0.0.1", forget=print), "were built for mlx 0.0.1, and "),
        (SimpleNamespace(mlx_version=version("mlx"), forget=None), "do not go together with mlx "),  # no array passes
        (None, "do not go together with mlx "),  # nor even a symbol
    ],
)
def test_an_extension_of_another_mlx_or_nanobind_is_refused_in_a_sentence(monkeypatch, native, reason):
    def import_module(name):
        if native is None:
            raise ImportError("undefined symbol: _ZN3mlx4core5arrayC1Ev")
        return native

    monkeypatch.setattr(extension.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(extension.importlib, "import_module", import_module)
    said = missing_reason()
    assert said is not None and reason in said and "pip install" in said and "\n" not in said


def test_a_build_beside_another_mlx_or_nanobind_is_refused_in_a_sentence(tmp_path):
    cmake, compiler = shutil.which("cmake"), shutil.which("c++")
    if cmake is None or compiler is None:
        pytest.skip("no cmake or no compiler")
    for name, other in (("mlx", "0.32.1"), ("nanobind", "2.9.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__main__.py").write_text("")
        (tmp_path / f"{name}-{other}.dist-info").mkdir()
        (tmp_path / f"{name}-{other}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {other}\n")
    done = subprocess.run(
        [cmake, "-S", "engine/kernels/cpu/native", "-B", tmp_path / "build", f"-DPython_EXECUTABLE={sys.executable}"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    pins = dict(re.findall(r'"(mlx|nanobind)==([0-9.]+)"', Path("pyproject.toml").read_text()))
    said = " ".join(done.stderr.split())
    assert f"wanted mlx {pins['mlx']} and nanobind {pins['nanobind']}; found 0.32.1 and 2.9.0" in said


def setup_of(monkeypatch, platform, wish=None):
    """What setup.py tells setuptools on a platform."""
    setuptools = pytest.importorskip("setuptools")
    told = {}
    with monkeypatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **given: told.update(given))
        patch.setattr(sys, "platform", platform)
        patch.delenv("GENSERVE_BUILD_CPU", raising=False)
        if wish is not None:
            patch.setenv("GENSERVE_BUILD_CPU", wish)
        runpy.run_path("setup.py")
    return told


@pytest.mark.parametrize(
    ("platform", "wish", "is_built"),
    [("linux", None, True), ("linux", "0", False), ("darwin", None, False), ("darwin", "1", True)],
)
def test_the_extension_is_built_on_linux_and_elsewhere_only_when_asked_for(monkeypatch, platform, wish, is_built):
    assert bool(setup_of(monkeypatch, platform, wish)["ext_modules"]) == is_built


@pytest.mark.parametrize("wish", [None, "1"])
def test_without_a_compiler_an_install_succeeds_unless_it_is_asked_for(monkeypatch, tmp_path, caplog, capfd, wish):
    told = setup_of(monkeypatch, "linux", wish)
    from setuptools import Distribution

    command = Distribution({"name": "genserve", **told}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    command.ensure_finalized()
    if wish == "1":
        with pytest.raises((OSError, subprocess.CalledProcessError)):
            command.build_extension(command.extensions[0])
        return
    with caplog.at_level(logging.WARNING):
        command.run()
    assert command.get_outputs() == []
    said = capfd.readouterr().err + caplog.text  # setuptools has changed its mind about where
    assert "the CPU kernels were not built, and the slow path will be in use" in said


def test_a_copy_of_the_code_alone_takes_the_extension_of_the_genserve_that_is_installed(tmp_path):
    if missing_reason() is not None:
        pytest.skip("the CPU kernels are not built")
    root = Path(extension.__file__).parents[3]
    shutil.copytree(root / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("_native*.so", "native"))
    code = "import engine.kernels.cpu as cpu; print(cpu.missing_reason(), cpu.__file__)"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert said.stdout.split() == ["None", f"{tmp_path}/engine/kernels/cpu/__init__.py"], said.stderr


def test_an_extension_of_another_version_of_genserve_is_refused_in_a_sentence(monkeypatch):
    if missing_reason() is not None:
        pytest.skip("the CPU kernels are not built")
    monkeypatch.setattr(extension, "interface_beside", lambda file: file.encode())
    assert "are those of another version of genserve" in str(missing_reason())
