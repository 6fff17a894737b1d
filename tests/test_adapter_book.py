"""Adapters that are loaded while a system runs: every life of a model server knows them, or says why it cannot."""

from dataclasses import replace
from pathlib import Path

import pytest

from actors.adapter_book import AdapterBook, BookedAdapter
from actors.messages import Attach, Detach
from actors.node import call
from actors.polls import Part
from engine.refusal import UnknownAdapter
from loaders.adapters import save_adapter
from tests.engines import ask, random_adapter, tiny_model
from tests.serving import tiny_choice
from tests.test_request_server import Bench, bench, steps

VOICE = {"adapter": "voice", "max_tokens": 12}


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    save_adapter(tmp_path / "voice", random_adapter(tiny_model(), seed=3))
    return tmp_path / "voice"


def opened(directory: Path):  # type: ignore[no-untyped-def]  # a context manager's type says less than its use
    files = replace(tiny_choice(directory), adapters=(), read_adapter="actors.model_loading:read_adapter")
    return bench(directory, choice=files)


def answer(made: Bench, name: str, is_killed: bool = False) -> Part:
    request = ask(name, b"Once upon", **VOICE)
    made.submit(request)
    if is_killed:
        steps(made.node, 9)
        made.kill_model()
    made.node.run()
    return made.poll(request)[name]


def tokens_of(part: Part) -> list[int]:
    return [token for _, _, _, tokens, *_ in part.pieces for token in tokens]


def test_an_adapter_loaded_at_run_time_is_there_in_the_next_life_and_its_requests_go_on(
    tmp_path: Path, voice: Path
) -> None:
    with opened(tmp_path) as made:
        made.node.run()
        assert call(made.model, Attach("voice", str(voice))) is None
        made.node.run()
        undisturbed = answer(made, "first")
        again = answer(made, "second", is_killed=True)
    assert again.end is not None and again.end.code is None
    assert tokens_of(again) == tokens_of(undisturbed)


def test_an_adapter_whose_files_changed_is_refused_to_its_own_requests_alone(tmp_path: Path, voice: Path) -> None:
    with opened(tmp_path) as made:
        made.node.run()
        call(made.model, Attach("voice", str(voice)))
        made.node.run()
        save_adapter(voice, random_adapter(tiny_model(), seed=4))
        refused = answer(made, "first", is_killed=True)
        assert refused.end is not None and refused.end.code == "unavailable"
        assert "changed" in (refused.end.message or "")
        plain = ask("plain", 5, max_tokens=3)
        made.submit(plain)
        made.node.run()
        end = made.poll(plain)["plain"].end
        assert end is not None and end.code is None
        assert call(made.model, Attach("voice", str(voice))) is None  # meant so: from now on it is this one
        made.node.run()
        end = answer(made, "third").end
        assert end is not None and end.code is None


def test_an_adapter_that_was_unloaded_does_not_come_back(tmp_path: Path, voice: Path) -> None:
    with opened(tmp_path) as made:
        made.node.run()
        call(made.model, Attach("voice", str(voice)))
        call(made.model, Detach("voice"))
        made.kill_model()
        made.node.run()
        with pytest.raises(UnknownAdapter):
            made.submit(ask("first", 5, **VOICE))


def test_what_a_system_is_started_with_goes_before_what_an_earlier_one_loaded(tmp_path: Path) -> None:
    AdapterBook(tmp_path, {"voice": "old"}).enter("voice", BookedAdapter("loaded later", "1"))
    assert AdapterBook(tmp_path, {"voice": "old"}).read() == {"voice": BookedAdapter("loaded later", "1")}
    assert AdapterBook(tmp_path, {"voice": "new"}).read() == {"voice": BookedAdapter("new")}
    assert AdapterBook(tmp_path, {}).read() == {}
