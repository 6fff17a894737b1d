"""The model's process is killed in the middle of a stream, and the reader sees a pause.

python examples/surviving_a_kill.py [MODEL]
"""

import sys
import time
from tempfile import TemporaryDirectory

import genserve
from actors import chaos
from actors.process import disconnect
from actors.system import stop

place = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
words = {"max_tokens": 80, "temperature": 0.8, "seed": 7, "ignore_eos": True}

with TemporaryDirectory() as directory:
    client = genserve.start(place, directory=directory)
    undisturbed = client.generate("Tell me a story.", **words)

    tokens: list[int] = []
    longest, last = 0.0, time.monotonic()
    for piece in client.stream("Tell me a story.", **words):
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        tokens += piece.tokens
        if len(tokens) == 20:
            print(f"killed {chaos.kill('model')}")

    assert tuple(tokens) == undisturbed.tokens, "not a token missing, repeated or different"
    print(f"{len(tokens)} tokens, each as undisturbed; the longest pause took {longest:.2f} s")

    client.close()
    stop()
    disconnect()
