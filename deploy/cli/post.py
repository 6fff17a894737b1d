"""genserve post: some posts, written in one batch."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from deploy.cli.consoles import output
from deploy.cli.posts import OnPosts, Writer, write_posts
from deploy.cli.progress import shown_progress
from deploy.inline import Generation
from engine.limits import MAX_CHOICES, check_integer
from engine.options import EngineOptions
from engine.refusal import BadRequest
from loaders.adapters import load_adapter
from loaders.checkpoint import load_model
from loaders.prompt import prompt_tokens
from loaders.sources import locate
from loaders.tokenizer import load_tokenizer

MODEL = "smollm2"
NUMBER = re.compile(r"-?[0-9]+")
MAX_DIGITS = 20  # Python refuses to read a number of very many
PROMPT = "Write a short, friendly social media post about something small that made your day better."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", help="how many posts, or a prompt")
    parser.add_argument("-n", type=int, help="how many posts, where the argument is a prompt")
    parser.add_argument("--model", help=f"a directory, a .gguf file, a hub id or a short name (default: {MODEL})")
    parser.add_argument(
        "--adapter", metavar="PATH[:scale]", help="a LoRA adapter, of mlx_lm or PEFT; its name with --connect"
    )
    parser.add_argument("--system", help="a system prompt")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--max-chars", type=int, default=300, help="cut at a sentence's end (default: 300)")
    parser.add_argument("--seed", type=int, help="for the same posts again")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--connect", action="store_true", help="use the system that runs, and its model")
    parser.add_argument("--address", help="the Ray that it runs on, with --connect")


def run(arguments: argparse.Namespace) -> int:
    count, prompt = wanted(arguments.what, arguments.n)
    check_integer("max_tokens", arguments.max_tokens, 1, 2**31 - 1)
    check_integer("max-chars", arguments.max_chars, 1, 1_000_000)
    is_live = output.is_terminal and not arguments.json
    with prepared(arguments, prompt, count) as (serving, adapter), shown_posts(is_live) as show:
        posts = write_posts(serving, prompt, count, words_of(arguments, adapter), arguments.max_chars, show)
    if arguments.json:
        for post in posts:
            print(json.dumps(post.to_dict(), ensure_ascii=not sys.stdout.encoding.lower().startswith("utf")))
    elif not is_live:
        print("\n\n".join(post.text for post in posts))
    return 0 if all(post.text for post in posts) else 1


def wanted(what: str | None, count: int | None) -> tuple[int, str]:
    """How many posts, and what about."""
    number, prompt = None, PROMPT if what is None else what
    if what is not None and NUMBER.fullmatch(what):
        number, prompt = number_of(what), PROMPT
    if not prompt.strip():
        raise BadRequest("the prompt is empty", "prompt")
    for found in (number, count):
        if found is not None:
            check_integer("the number of posts", found, 1, MAX_CHOICES)
    if number is not None and count is not None:
        raise BadRequest(f"the number of posts is given twice, as {what!r} and as -n {count}", "n")
    return number or count or 1, prompt


def number_of(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        wanted = f"the number of posts must be a whole number from 1 to {MAX_CHOICES}"
        raise BadRequest(f"{wanted}; got one of {len(digits.lstrip('-'))} digits", "what")
    return int(digits)


@contextmanager
def prepared(arguments: argparse.Namespace, prompt: str, count: int) -> Iterator[tuple[Writer, str | None]]:
    """The serving that the arguments ask for, and the name of its adapter."""
    if not arguments.connect:
        if arguments.address is not None:
            raise BadRequest("--address is for --connect: without it no system is asked", "address")
        yield loaded(arguments, prompt, count)
        return
    if arguments.model is not None:
        raise BadRequest("with --connect the model is that of the system that runs; leave out --model", "connect")
    from deploy.cli.running import (
        RunningGeneration,
        connected,
    )  # Ray takes a second to import, and most posts need none

    with connected(arguments.address or "auto") as client:
        yield RunningGeneration(client), arguments.adapter


def loaded(arguments: argparse.Namespace, prompt: str, count: int) -> tuple[Writer, str | None]:
    with shown_progress() as on_progress:
        place = locate(MODEL if arguments.model is None else arguments.model, on_progress)
        model, tokenizer = load_model(place, on_progress=on_progress), load_tokenizer(place)
        adapters = {}
        if arguments.adapter is not None:
            path, scale = adapter_and_scale(arguments.adapter)
            adapters["adapter"] = load_adapter(path, scale, model_config=model.config)
        num_tokens = len(prompt_tokens(tokenizer, prompt, system=arguments.system)) + max(1, arguments.max_tokens)
        options = EngineOptions(max_sequences=count, max_context=num_tokens)  # no more memory than this is touched
        return Generation(model, tokenizer, adapters, options), next(iter(adapters), None)


def adapter_and_scale(text: str) -> tuple[str, float | None]:
    """PATH, or PATH:scale."""
    path, colon, scale = text.rpartition(":")
    if not colon or os.path.exists(text):
        return text, None
    try:
        return path, float(scale)
    except ValueError:
        raise BadRequest(f"an adapter is PATH or PATH:scale, the scale a number; got {text!r}", "adapter") from None


def words_of(arguments: argparse.Namespace, adapter: str | None) -> dict[str, Any]:
    """What the command line says of sampling, in the words of `Generation.run`."""
    names = ("system", "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")
    return {name: getattr(arguments, name) for name in names} | {"adapter": adapter}


@contextmanager
def shown_posts(is_live: bool) -> Iterator[OnPosts]:
    """On a terminal the posts appear as they are written."""
    if not is_live:
        yield lambda _: None
        return
    with Live(console=output, refresh_per_second=12, vertical_overflow="visible") as live:
        yield lambda posts: live.update(Group(*(Text(post.text + "\n") for post in posts)))
