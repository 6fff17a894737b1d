"""actors/system.py: what a system is told of places, and where it keeps its journals. Nothing is started here."""

from pathlib import Path
from typing import Any

import pytest

from actors import process, system
from actors.model_choice import ModelChoice
from actors.system import default_directory
from actors.system_config import SystemConfig
from engine.refusal import BadRequest, BrokenFile, Unsupported
from loaders.adapters import load_adapter, save_adapter
from loaders.checkpoint import load_model
from loaders.made_up import made_up_adapter
from tests.tiny import write_checkpoint
from tests.tiny_gguf import write_gguf


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


# What a system is made of, looked at before anything is started


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny", "llama")


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "connect", lambda: pytest.fail("Ray is started"))


@pytest.mark.parametrize("counts", [{"replicas": 0}, {"partitions": 0}, {"spares": -1}, {"replicas": "two"}])
def test_a_count_that_cannot_be_is_refused(counts: dict[str, Any], model: Path, tmp_path: Path) -> None:
    (name, value), *_ = counts.items()
    with pytest.raises(BadRequest, match=f"{name} must be a whole number from .*; got {value!r}"):
        system.start(model, directory=tmp_path, **counts)


def test_an_adapter_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match=f"{tmp_path}/nosuch is no adapter"):
        system.start(model, directory=tmp_path, adapters={"v": str(tmp_path / "nosuch")})


@pytest.mark.parametrize("form", ["directory", "gguf"])
def test_an_adapter_of_another_model_is_refused_in_the_words_of_whoever_loads_it(form: str, tmp_path: Path) -> None:
    place = tmp_path / "model.gguf" if form == "gguf" else tmp_path / "model"
    model = write_gguf(place, "llama") if form == "gguf" else write_checkpoint(place, "llama")
    other = write_checkpoint(tmp_path / "other", "llama", hidden_size=128)
    voice = tmp_path / "voice"
    save_adapter(voice, made_up_adapter(load_model(other).config, 4, seed=1))
    with pytest.raises(Unsupported) as when_loaded:
        load_adapter(voice, model_config=load_model(model).config)
    with pytest.raises(Unsupported) as at_start:
        system.start(model, directory=tmp_path, adapters={"v": str(voice)})
    assert at_start.value.message == when_loaded.value.message


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null", "/dev/null/x", "/" + "a" * 300])
def test_a_directory_that_cannot_be_written_is_refused_with_the_reason(place: str, model: Path) -> None:
    with pytest.raises(BadRequest, match=f"no journal can be kept in {place}: [A-Z][a-z ]+"):
        system.start(model, directory=place)


@pytest.mark.parametrize(("named", "is_refused"), [("there", False), (None, False), ("elsewhere", True)])
def test_who_names_another_directory_is_not_given_the_system_that_runs(
    named: str | None, is_refused: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = default_directory(model) if named is None else tmp_path / named
    there = SystemConfig(ModelChoice(str(model)), str(tmp_path / "there"), partitions=3)
    wanted = SystemConfig(ModelChoice(str(model)), str(directory))
    monkeypatch.setattr(system, "running_config", lambda: there)
    if is_refused:
        with pytest.raises(BadRequest, match=f"a system runs here already, .* journals in {tmp_path}/there"):
            system.as_it_runs(wanted)
    else:
        assert system.as_it_runs(wanted) is there
