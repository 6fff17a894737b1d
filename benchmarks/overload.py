"""Many times more requests than can be answered: what was accepted is in time, and the rest is refused quickly.

    python -m benchmarks.overload                    # SmolLM2, 20 times what it can do
    python -m benchmarks.overload --model tiny --times 20

First as many streams as the engine likes are kept open, which gives the peak. Then requests come at a steady rate, each
with a deadline, whatever becomes of those before. Goodput counts the tokens of requests that were whole in time.
"""

import argparse
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors import process, system
from actors.client import Client
from actors.refusals import DeadlinePassed, Overloaded
from actors.stream import Stream
from actors.system_config import SystemConfig
from benchmarks.command_line import at_least, told_in_a_sentence
from benchmarks.streams import choice_of, spread

PROMPT_TOKENS = 24
WARM_SECONDS = 4.0
SENDERS = 64


@dataclass
class Tally:
    """What became of the requests. Guarded by its lock."""

    tokens: int = 0  # of requests that were whole in time
    whole: int = 0
    late: list[float] = field(default_factory=list)  # seconds behind their deadlines
    failed: list[str] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)  # seconds until the refusal was there
    retries: list[float] = field(default_factory=list)  # seconds after which to come back
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Offer:
    """Sends requests, all of one kind, and follows those that were accepted."""

    client: Client
    num_tokens: int
    deadline_seconds: float
    tally: Tally = field(default_factory=Tally)

    def ask(self, name: str) -> Stream | None:
        words = {"max_tokens": self.num_tokens, "temperature": 0.0, "ignore_eos": True}
        began = time.monotonic()
        try:
            number = hash(name)
            prompt = tuple(3 + (number * 37 + place * 11) % 240 for place in range(PROMPT_TOKENS))
            return self.client.stream(prompt, deadline_seconds=self.deadline_seconds, **words)
        except Overloaded as refusal:
            with self.tally.lock:
                self.tally.refusals.append(time.monotonic() - began)
                self.tally.retries.append(refusal.retry_after_seconds)
            return None

    def follow(self, stream: Stream, until: float) -> None:
        try:
            count = sum(len(piece.tokens) for piece in stream)
        except DeadlinePassed:
            with self.tally.lock:
                self.tally.late.append(time.monotonic() - until)
            return
        except Exception as failure:
            with self.tally.lock:
                self.tally.failed.append(repr(failure))
            return
        with self.tally.lock:
            behind = time.monotonic() - until
            if behind > 0:
                self.tally.late.append(behind)
                return
            self.tally.whole += 1
            self.tally.tokens += count

    def send(self, name: str) -> None:
        until = time.monotonic() + self.deadline_seconds
        stream = self.ask(name)
        if stream is not None:
            threading.Thread(target=self.follow, args=(stream, until), daemon=True).start()


def peak(offer: Offer, streams: int, seconds: float) -> float:
    """Tokens a second with so many streams always open."""
    is_over = threading.Event()
    seen: list[tuple[float, int]] = []

    def keep_open(place: int) -> None:
        number = 0
        while not is_over.is_set():
            stream = offer.ask(f"peak-{place}-{number}")
            number += 1
            for piece in stream or ():
                seen.append((time.monotonic(), len(piece.tokens)))

    threads = [threading.Thread(target=keep_open, args=(place,)) for place in range(streams)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_SECONDS)
    began = time.monotonic()
    time.sleep(seconds)
    ended = time.monotonic()
    is_over.set()
    for thread in threads:
        thread.join()
    return sum(count for moment, count in seen if began <= moment < ended) / (ended - began)


def overload(offer: Offer, rate: float, seconds: float) -> tuple[float, int]:
    """Goodput under so many requests a second, and how many were really sent."""
    sent = 0
    with ThreadPoolExecutor(SENDERS) as senders:
        began = time.monotonic()
        settled: tuple[float, int] | None = None
        while (elapsed := time.monotonic() - began) < WARM_SECONDS + seconds:
            if settled is None and elapsed >= WARM_SECONDS:
                settled = time.monotonic(), offer.tally.tokens
            while sent < elapsed * rate:
                senders.submit(offer.send, f"over-{sent}")
                sent += 1
            time.sleep(0.005)
        ended, tokens = time.monotonic(), offer.tally.tokens
        assert settled is not None
    time.sleep(offer.deadline_seconds + 1.0)
    return (tokens - settled[1]) / (ended - settled[0]), sent


@told_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--times", type=at_least(0.1), default=20.0, help="what is asked, in peaks")
    parser.add_argument("--streams", type=at_least(1), default=64)
    parser.add_argument("--tokens", type=at_least(1), default=32)
    parser.add_argument("--deadline", type=at_least(0.1), default=6.0)
    parser.add_argument("--seconds", type=at_least(1.0), default=20.0)
    args = parser.parse_args()
    process.connect()
    with tempfile.TemporaryDirectory() as directory:
        client = system.start_system(SystemConfig(choice_of(args.model, Path(directory)), f"{directory}/state"))
        print(json.dumps(measure(client, args), indent=2))
        client.close()
        system.stop()
    process.disconnect()


def measure(client: Client, args: argparse.Namespace) -> dict[str, Any]:
    best = peak(Offer(client, args.tokens, 600.0), args.streams, args.seconds)
    offer = Offer(client, args.tokens, args.deadline)
    rate = args.times * best / args.tokens
    goodput, sent = overload(offer, rate, args.seconds)
    tally = offer.tally
    settled = tally.whole + len(tally.late) + len(tally.failed) + len(tally.refusals)
    return {
        "peak, tokens/s": round(best, 1),
        "requests a second that were sent": round(rate, 1),
        "goodput, tokens/s": round(goodput, 1),
        "goodput / peak": round(goodput / best, 3),
        "accepted and whole in time": tally.whole,
        "accepted and late": len(tally.late),
        "accepted and failed": tally.failed[:5],
        "neither refused nor ended": sent - settled,
        "refused": f"{len(tally.refusals)} of {sent}",
        "until the refusal, s": spread(tally.refusals),
        "told to come back after, s": spread(tally.retries),
    }


if __name__ == "__main__":
    main()
