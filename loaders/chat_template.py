"""ChatTemplates: a model's own Jinja templates, rendered where they can do no harm.

A template comes with a checkpoint, from anybody. Jinja's sandbox keeps it from Python's internals, but not from
looping for ever, from doubling a string forty times, or from asking for a text of ten gigabytes. Counting in the same
process (a tracing hook, rewritten loops, checked operators) slows every template and has a hole for each filter and
string method that was not thought of, and a thread cannot be stopped at all. So templates are rendered in a process
of their own, with a limit on its memory, a timer on its processor time that ends it without its own doing, and a
limit on the text's length. What was ended is started again for the next rendering. The process starts with the first
use, costs a tenth of a second then and a fraction of a millisecond for each rendering, and ends when the pipe to it
closes, however its owner ends. It works in any thread of any process; one rendering runs at a time.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from engine.refusal import BadRequest

PROGRAM = Path(__file__).with_name("template_process.py")
CPU_SECONDS = 2.0
MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 1 << 24
MAX_ANSWER_BYTES = 1 << 28
TIMED_OUT = -signal.SIGPROF  # what a process ends with that computed for too long
PARTING_SECONDS = 1.0  # for a process to end that has nothing to wait for


class ChatTemplates:
    """Templates by name, and the process that renders them.

    ChatTemplates({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"}).render("default", {"messages": []})
    """

    def __init__(
        self, sources: Mapping[str, str], *, cpu_seconds: float = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.sources = sources
        self.cpu_seconds = cpu_seconds
        self.memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, name: str, variables: Mapping[str, Any], max_characters: int = MAX_CHARACTERS) -> str:
        """The text, or a refusal that says what the template, or its limits, have against it."""
        request = {"template": name, "variables": variables, "max_characters": max_characters}
        with self._lock:
            process, answer = self._ask(request)
            if answer is None and process.returncode != TIMED_OUT:  # by a signal from outside, for all that is known
                process, answer = self._ask(request)
        if answer is None:
            raise BadRequest(f"the chat template was stopped: {self._reason(process)}", "messages")
        if "refused" in answer:
            raise BadRequest(f"the chat template refuses: {answer['refused']}", "messages")
        return answer["text"]

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        with self._lock:
            if self._process is not None:
                end(self._process)
                self._process = None

    def _ask(self, request: Mapping[str, Any]) -> "tuple[subprocess.Popen[bytes], dict[str, str] | None]":
        process = self._running()
        return process, ask(process, request)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            # -P: the names in this folder must not stand before those of the libraries.
            command = [sys.executable, "-P", str(PROGRAM)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            weakref.finalize(self, end, self._process)
            settings = {
                "sources": dict(self.sources),
                "cpu_seconds": self.cpu_seconds,
                "memory_bytes": self.memory_bytes,
            }
            with contextlib.suppress(BrokenPipeError):  # said when it is asked
                write(self._process.stdin, settings)
        return self._process

    def _reason(self, process: "subprocess.Popen[bytes]") -> str:
        if process.returncode == TIMED_OUT:
            return f"it ran for more than {self.cpu_seconds:g} seconds"
        return f"its process ended with {process.returncode}"


def ask(process: "subprocess.Popen[bytes]", request: Mapping[str, Any]) -> dict[str, str] | None:
    """The answer to a request, or None where the process ended before it gave one."""
    answer = None
    try:
        with contextlib.suppress(BrokenPipeError):
            write(process.stdin, request)
            answer = read(process.stdout)
    except BaseException:  # interrupted in between: the next answer would be to another question
        process.kill()
        end(process)
        raise
    if answer is None:
        end(process)
    return answer


def write(pipe: IO[bytes] | None, message: Mapping[str, Any]) -> None:
    assert pipe is not None
    content = json.dumps(message).encode()
    pipe.write(len(content).to_bytes(4, "little") + content)
    pipe.flush()


def read(pipe: IO[bytes] | None) -> dict[str, str] | None:
    assert pipe is not None
    length = int.from_bytes(pipe.read(4), "little")
    if not 0 < length <= MAX_ANSWER_BYTES:
        return None
    content = pipe.read(length)
    answer: dict[str, str] | None = json.loads(content) if len(content) == length else None
    return answer


def end(process: "subprocess.Popen[bytes]") -> None:
    """Close the pipe to a process, which ends it, and wait until it is gone."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(PARTING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
