"""actors/system.py: what a system is told of places, and where it keeps its journals. Nothing is started here."""

from pathlib import Path

import pytest

from actors import system
from actors.system import default_directory
from actors.system_config import SystemConfig


def test_a_system_is_started_with_places_that_mean_the_same_in_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    started: list[SystemConfig] = []
    monkeypatch.setattr(system, "start_system", lambda config, **_: started.append(config))
    adapters = {"voice": "./voice", "same": "~/voice"}
    for source in ("./model", Path("model"), "~/model"):
        system.start(source, adapters=adapters, directory="state")
        config = started.pop()
        assert config.choice.source == str(tmp_path / "model")
        assert set(config.choice.adapters) == {(name, str(tmp_path / "voice")) for name in adapters}
        assert config.directory == str(tmp_path / "state")


def test_a_name_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    started: list[SystemConfig] = []
    monkeypatch.setattr(system, "start_system", lambda config, **_: started.append(config))
    for source in ("smollm2", "owner/name"):
        system.start(source)
        config = started.pop()
        assert config.choice.source == source
        assert Path(config.directory) == tmp_path / ".genserve" / "state" / source.replace("/", "-")
    assert default_directory("./smollm2") == default_directory(tmp_path / "smollm2") != default_directory("smollm2")


def test_two_models_at_one_relative_path_share_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = set[Path]()
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        assert default_directory("./model") == default_directory("model/") == default_directory(Path.cwd() / "model")
        found.add(default_directory("./model"))
    assert len(found) == 2
    assert all(path.name.startswith("model-") for path in found)


@pytest.mark.parametrize("source", [".", "..", "../model", "../link"])
def test_a_journal_is_named_by_where_its_model_is(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    (model / "part").mkdir(parents=True)
    (tmp_path / "link").symlink_to(model)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(model / "part" if source == ".." else model)
    directory = default_directory(source)
    assert directory == default_directory(model)
    assert directory.parent == tmp_path / ".genserve" / "state" and directory.name.startswith("model-")
