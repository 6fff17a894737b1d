"""`genserve serve --inline`, as a person starts and ends it."""

import argparse
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy.cli import serve
from deploy.cli.main import main
from deploy.http.door_config import DoorConfig
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


def test_a_systems_door_gets_the_keys_and_the_directory_of_adapters(tmp_path: Path) -> None:
    model = write_tokenizer(write_checkpoint(tmp_path / "tiny", "llama"))
    (tmp_path / "keys.json").write_text('{"alice": "sk-alice-0001"}')
    words = ("--model", str(model), "--host", "0.0.0.0", "--directory", str(tmp_path), "--known-as", "models.example")
    with pytest.raises(BadRequest, match="keys"):
        serve.config_of(parsed(*words))
    (spec,) = serve.config_of(parsed(*words, "--keys", str(tmp_path / "keys.json"), "--adapters", "voices")).doors
    door = spec.start[-1]
    assert isinstance(door, DoorConfig)
    assert door.keys.tenant_of("Bearer sk-alice-0001") == "alice"
    assert (door.name, door.host, door.port) == ("tiny", "0.0.0.0", 8000)
    assert (door.hosts, door.adapters) == (("models.example",), "voices")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "an object is wanted"),
        ("{", "not JSON"),
        ("{}", "holds no keys"),
        ('{"alice": "short"}', "8 characters"),
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
    assert option.split("=")[0] in capsys.readouterr().err
