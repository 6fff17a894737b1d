"""genserve serve: the whole system in the foreground. Ctrl-C lets what runs end; a second one does not wait."""

import argparse
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import get_args

from actors import process
from actors.client import Client
from actors.model_choice import ModelChoice
from actors.system import default_directory, start_system, stay, stop
from actors.system_config import SystemConfig
from actors.tree import STOPPED
from deploy.cli.consoles import errors
from deploy.cli.named_path import check_not_the_models, named_places
from deploy.cli.progress import shown_progress
from deploy.http.adapter_folder import check_folder
from deploy.http.door_config import HOST, PORT, DoorConfig, door_spec, model_name
from deploy.http.keys import NO_KEYS, Keys
from engine.kernels.expand import EXPAND_HELP, Expand
from engine.limits import check_integer
from engine.options import EngineOptions
from engine.refusal import BadRequest
from loaders.sources import locate
from loaders.tokenizer import load_tokenizer

OF_MANY_PROCESSES = {
    "adapter": [],
    "replicas": 1,
    "spares": 0,
    "partitions": 1,
    "power_safe": False,
    "directory": None,
    "address": None,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="a directory, a .gguf file, a hub id or a short name")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH", help="may be given often")
    parser.add_argument("--adapters", type=Path, metavar="DIR", help="where clients may load adapters from, by name")
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--known-as", action="append", default=[], metavar="NAME", help="a host that clients address")
    parser.add_argument("--keys", type=Path, help='a JSON file of API keys, {"name": "key"}; a name is a tenant')
    parser.add_argument("--replicas", type=int, default=1, help="model servers at work")
    parser.add_argument("--spares", type=int, default=0, help="model servers kept warm for when one dies")
    parser.add_argument("--partitions", type=int, default=1, help="request servers")
    parser.add_argument("--power-safe", action="store_true", help="accept nothing before it is on the disk itself")
    parser.add_argument("--directory", type=Path, help="where journals are kept (default: below ~/.genserve)")
    parser.add_argument("--expand", choices=get_args(Expand), default="auto", help=EXPAND_HELP)
    parser.add_argument("--address", help="a Ray to join; without it one is started here")
    parser.add_argument("--inline", action="store_true", help="all in this process, without Ray: to try things out")


def run(arguments: argparse.Namespace) -> int:
    if arguments.inline:
        return run_inline(arguments)
    config = config_of(arguments)
    if arguments.address is None:
        check_port(arguments.host, arguments.port)
    with errors.status("starting"):
        client = start_system(config, address=arguments.address)
    is_asked_to_end = noted_signals()

    def ray_died() -> None:
        errors.print(
            "genserve: its Ray has died; what was accepted is in the journal, for the next start", soft_wrap=True
        )
        os._exit(0 if is_asked_to_end() else 1)  # whoever waits for that Ray would hold this program back

    with process.vigil(ray_died):
        try:
            # Only now, for Ray sets its own; SIGINT too, for a shell's background jobs start with it ignored.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, as_interrupt)
            errors.print(f"genserve is running: http://{arguments.host}:{arguments.port}", highlight=False)
            errors.print("Ctrl-C ends it when all answers are given; a second one ends it at once.")
            reason = stay(config)
        except KeyboardInterrupt:
            end(client)
            return 0
    if reason != STOPPED:
        errors.print(
            f"genserve: the system gave up: {reason}; its children's deaths are in Ray's logs", highlight=False
        )
    return int(reason != STOPPED)


def run_inline(arguments: argparse.Namespace) -> int:
    """The door and the engine in this process. An engine that dies begins anew; the process itself must not."""
    for name, default in OF_MANY_PROCESSES.items():
        if getattr(arguments, name) != default:
            given = f"--{name.replace('_', '-')} is for a system of many processes"
            raise BadRequest(f"{given}; with --inline there is no other than this one", name)
    check_integer("port", arguments.port, 0, 65535)
    folder = folder_of(arguments)
    check_port(arguments.host, arguments.port)
    from deploy.http.inline_model import inline_model  # with FastAPI, which a system's door imports in its own process
    from deploy.http.serve import serve

    with shown_progress() as on_progress:
        place = locate(arguments.model, on_progress)
    tokenizer = load_tokenizer(place)
    name, keys = model_name(arguments.model, place), keys_of(arguments)
    options = EngineOptions(expand=arguments.expand)
    backend = inline_model(place, tokenizer, name=name, adapters=folder, options=options)

    def started(url: str) -> None:
        errors.print(f"genserve is running in one process: {url}", highlight=False)

    names = arguments.known_as
    serve(backend, tokenizer, host=arguments.host, port=arguments.port, keys=keys, hosts=names, started=started)
    return 0


def end(client: Client) -> None:
    """Give the answers that were promised, unless told again not to wait."""
    try:
        with errors.status("giving the answers that were promised"):
            client.drain()
    except KeyboardInterrupt:
        errors.print("not waiting; what was accepted is in the journal")
    finally:
        stop()


def noted_signals() -> Callable[[], bool]:
    """Whether a signal has come, also one that Python has not told yet: the main thread may be waiting for Ray."""
    there, here = socket.socketpair()
    there.setblocking(False)
    here.setblocking(False)
    signal.set_wakeup_fd(there.detach(), warn_on_full_buffer=False)

    def has_come() -> bool:
        with suppress(BlockingIOError):
            return bool(here.recv(1))
        return False

    return has_come


def as_interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def check_port(host: str, port: int) -> None:
    """Said before anything is started: the door itself would find out again and again."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as trouble:
        reason, _, _ = str(trouble.strerror).partition(" (while")  # Python adds the host and the port once more
        raise BadRequest(f"port {port} of {host} cannot be had ({reason}); give another", "port") from None


def config_of(arguments: argparse.Namespace) -> SystemConfig:
    """The system that the arguments ask for."""
    check_integer("port", arguments.port, 1, 65535)
    directory = arguments.directory or default_directory(arguments.model)
    config = SystemConfig(
        ModelChoice(arguments.model, EngineOptions(expand=arguments.expand), adapters=named_places(arguments.adapter)),
        str(directory.absolute()),
        level="power-safe" if arguments.power_safe else "kill-safe",
        partitions=arguments.partitions,
        replicas=arguments.replicas,
        spares=arguments.spares,
    )
    folder, keys = folder_of(arguments), keys_of(arguments)
    with shown_progress() as on_progress:
        place = locate(arguments.model, on_progress).absolute()  # fetched here, where its progress is seen
    name = model_name(arguments.model, place)
    check_not_the_models((name,), config.choice.adapters)
    config = replace(config, choice=replace(config.choice, source=str(place)))
    adapters = None if folder is None else str(folder)
    door = DoorConfig(name, arguments.host, arguments.port, keys, tuple(arguments.known_as), adapters)
    return replace(config, doors=(door_spec(config, door),))


def folder_of(arguments: argparse.Namespace) -> Path | None:
    """The directory that clients load adapters from."""
    if arguments.adapters is None:
        return None
    check_folder(arguments.adapters)
    return Path(arguments.adapters).absolute()


def keys_of(arguments: argparse.Namespace) -> Keys:
    return NO_KEYS if arguments.keys is None else Keys.read(arguments.keys)
