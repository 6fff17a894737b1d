"""`genserve serve --inline`, as a person starts and ends it."""

import argparse
import asyncio
import logging
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from actors import process
from actors.system import default_directory
from deploy.cli import serve
from deploy.cli.main import main
from deploy.http.door_config import DoorConfig, model_name
from deploy.http.serve import config_of
from engine.refusal import BadRequest, Refusal
from loaders.adapters import save_adapter
from tests.engines import random_adapter, tiny_model
from tests.http_world import wait_until_ready
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer


def test_one_process_serves_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    model = write_tokenizer(write_checkpoint(tmp_path / "tiny", "llama"))
    save_adapter(tmp_path / "voices" / "voice", random_adapter(tiny_model(), seed=1))
    keys = tmp_path / "keys.json"
    keys.write_text('{"alice": "sk-alice-0001", "operator": "sk-operator-2"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "deploy.cli.main", "serve", "--inline", "--model", str(model), "--port", port]
    command += ["--known-as", "models.example", "--keys", str(keys), "--adapters", str(tmp_path / "voices")]
    alice, operator = ({"Authorization": f"Bearer {key}"} for key in ("sk-alice-0001", "sk-operator-2"))
    with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        while b"http://" not in server.stderr.readline():
            pass
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False, timeout=20) as client:
            assert client.get("/v1/models").status_code == 401
            client.headers = httpx.Headers(alice)
            wait_until_ready(client)
            answer = client.post("/v1/completions", json={"prompt": "Once"}, headers={"Host": "models.example"})
            assert answer.status_code == 200 and answer.json()["model"] == "tiny"
            voice = {"lora_name": "voice"}
            assert client.post("/v1/load_lora_adapter", json=voice).status_code == 403
            assert client.post("/v1/load_lora_adapter", json=voice, headers=operator).status_code == 200
            assert client.post("/v1/completions", json={"prompt": "Once", "model": "voice"}).json()["model"] == "voice"
        server.send_signal(signal.SIGINT)
        assert server.wait(20) in (0, 130)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(words)


def test_only_this_machine_is_let_in_where_nothing_is_said() -> None:
    arguments = parsed()
    assert (arguments.host, arguments.port, arguments.keys, arguments.adapters) == ("127.0.0.1", 8000, None, None)


def test_a_systems_door_gets_the_keys_and_the_directory_of_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tokenizer(write_checkpoint(tmp_path / "tiny", "llama"))
    (tmp_path / "voices").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.json").write_text('{"alice": "sk-alice-0001"}')
    words = ("--model", str(model), "--host", "0.0.0.0", "--directory", str(tmp_path), "--known-as", "models.example")
    with pytest.raises(BadRequest, match="keys"):
        serve.config_of(parsed(*words))
    (spec,) = serve.config_of(parsed(*words, "--keys", str(tmp_path / "keys.json"), "--adapters", "voices")).doors
    door = spec.start[-1]
    assert isinstance(door, DoorConfig)
    assert door.keys.tenant_of("Bearer sk-alice-0001") == "alice"
    assert (door.name, door.host, door.port) == ("tiny", "0.0.0.0", 8000)
    assert (door.hosts, door.adapters) == (("models.example",), str(Path("voices").absolute()))


def test_a_system_is_told_places_that_mean_the_same_in_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer(write_checkpoint(tmp_path / "tiny", "llama"))
    save_adapter(tmp_path / "voice", random_adapter(tiny_model(), seed=1))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    adapters = ("--adapter", "voice=./voice", "--adapter", "same=~/voice")
    config = serve.config_of(parsed("--model", "./tiny", *adapters, "--directory", "state"))
    assert config.choice.source == str(tmp_path / "tiny")
    assert config.choice.adapters == (("voice", str(tmp_path / "voice")), ("same", str(tmp_path / "voice")))
    assert config.directory == str(tmp_path / "state")


@pytest.mark.parametrize("source", [".", "../tiny", "./part/..", "../tiny/part/.."])
def test_a_model_that_is_named_by_dots_is_called_as_its_directory(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (write_tokenizer(write_checkpoint(tmp_path / "tiny", "llama")) / "part").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "tiny")
    config = serve.config_of(parsed("--model", source))
    (spec,) = config.doors
    assert spec.start[-1].name == "tiny"
    assert Path(config.directory) == default_directory(tmp_path / "tiny")


def test_a_short_name_and_a_hub_id_are_what_clients_call_a_model() -> None:
    place = Path("/cache/snapshots/0123")
    assert model_name("smollm2", place) == "smollm2"
    assert model_name("owner/Name-4bit", place) == "Name-4bit"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "an object is wanted"),
        ("{", "not JSON"),
        ("{}", "holds no keys"),
        ('{"alice": "short"}', "8 characters"),
        ('{"alice": "sk-the-same-1", "bob": "sk-the-same-1"}', "^'alice' and 'bob' have the same key; .* of its own$"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "keys.json").write_text(content)
    with pytest.raises(Refusal, match=words):
        serve.keys_of(parsed("--keys", str(tmp_path / "keys.json")))


@pytest.mark.parametrize("option", ["--replicas=2", "--power-safe", "--adapter=voice=./voice"])
def test_what_one_process_cannot_do_is_refused_by_name(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--inline", option]) == 2
    name = option.split("=")[0]
    told = f"genserve: {name} is for a system of many processes; with --inline there is no other than this one\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("inline", [(), ("--inline",)])
@pytest.mark.parametrize("name", ["nowhere", "a file", "a" * 300])
def test_what_is_no_directory_of_adapters_is_refused(
    name: str, inline: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").touch()
    words = ("--adapters", str(tmp_path / name), "--model", "no-such-model")
    assert main(["serve", *inline, *words]) == 2
    told = f"genserve: {tmp_path / name} is no directory; one that adapters are loaded from is wanted\n"
    assert capsys.readouterr().err == told


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    model = write_tokenizer(write_checkpoint(tmp_path / "tiny", "llama"))
    words = ("--model", str(model), "--directory", str(tmp_path / "state"))
    with pytest.raises(BadRequest, match="two adapters are named 'v': each needs a name of its own"):
        serve.config_of(parsed(*words, "--adapter", "v=a", "--adapter", "w=b", "--adapter", "v=a"))
    with pytest.raises(BadRequest, match="'tiny' is the model's name: the adapter needs one of its own"):
        serve.config_of(parsed(*words, "--adapter", "tiny=a"))


@pytest.mark.parametrize("fault", ["directory", "adapter"])
def test_what_cannot_be_started_is_told_before_anything_is(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "connect", lambda: pytest.fail("Ray is started"))
    model = write_tokenizer(write_checkpoint(tmp_path / "tiny", "llama", num_hidden_layers=1))
    save_adapter(tmp_path / "voice", random_adapter(tiny_model(), seed=1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    directory = "/dev/null/x" if fault == "directory" else str(tmp_path / "state")
    words = ("--model", str(model), "--port", port, "--directory", directory)
    assert main(["serve", *words, "--adapter", f"v={tmp_path / 'voice'}"]) == 2
    misfit = "it changes layer 1; the model has layers 0 to 0"
    told = {
        "directory": "no journal can be kept in /dev/null/x: Not a directory",
        "adapter": f"the adapter {tmp_path / 'voice'} does not fit the model: {misfit}",
    }
    assert capsys.readouterr().err == f"genserve: {told[fault]}\n"


@pytest.mark.parametrize("option", ["--replicas=0", "--partitions=65", "--spares=-1", "--port=0"])
def test_a_count_that_cannot_be_is_refused_before_anything_is_fetched(option: str) -> None:
    name, _, value = option.removeprefix("--").partition("=")
    with pytest.raises(BadRequest, match=f"{name} must be a whole number from .*; got {value}"):
        serve.config_of(parsed(option, "--model", "no-such-model"))


def test_a_port_that_is_taken_is_one_short_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--inline", "--port", str(port), "--model", "no-such-model"]) == 2
    told = f"genserve: port {port} of 127.0.0.1 cannot be had (Address already in use); give another\n"
    assert capsys.readouterr().err == told


def test_an_answer_that_is_cut_off_at_the_end_is_no_error() -> None:
    async def app(*_: object) -> None: ...

    config_of(app)
    log = logging.getLogger("uvicorn.error")

    def is_told(trouble: BaseException) -> bool:
        exc_info = (type(trouble), trouble, None)
        return bool(log.filter(log.makeRecord(log.name, logging.ERROR, "", 0, "in an application", (), exc_info)))

    assert is_told(ValueError()) and not is_told(asyncio.CancelledError())
