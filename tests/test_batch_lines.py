"""deploy/jobs/raw_lines.py, lines.py, custom_ids.py, done_lines.py: what a batch file says, line by line."""

import io
import json
import random
import tracemalloc

import pytest

from deploy.jobs.custom_ids import CustomIds
from deploy.jobs.done_lines import DoneLines
from deploy.jobs.lines import Blank, Fault, Line, read_lines
from deploy.jobs.raw_lines import RawLine, raw_lines
from deploy.jobs.troubles import CannotWrite

CHAT = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": [{"role": "user", "content": "hi"}]},
}


def read(data: bytes | str) -> list[Line | Fault | Blank]:
    encoded = data.encode() if isinstance(data, str) else data
    return list(read_lines(raw_lines(io.BytesIO(encoded)), CustomIds()))


def fault(text: bytes | str) -> str:
    (found,) = read(text)
    assert isinstance(found, Fault)
    return found.refusal.message


def test_a_line_of_openai_is_its_id_its_url_and_its_body() -> None:
    (line,) = read(json.dumps(CHAT))
    assert isinstance(line, Line)
    assert (line.number, line.custom_id, line.url, line.body) == (1, "a", "/v1/chat/completions", CHAT["body"])


def test_a_plain_line_is_its_words() -> None:
    (line,) = read('{"prompt": "hi", "max_tokens": 3, "custom_id": "x"}')
    assert isinstance(line, Line)
    assert (line.url, line.custom_id, line.body) == (None, "x", {"prompt": "hi", "max_tokens": 3})


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_one_change_nothing() -> None:
    plain = read('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert read(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}') == plain


def test_blank_lines_are_counted_and_passed_over() -> None:
    numbers = [(type(line), line.number) for line in read('\n{"prompt": "a"}\n  \r\n{"prompt": "b"}\n\n')]
    assert numbers == [(Blank, 1), (Line, 2), (Blank, 3), (Line, 4), (Blank, 5)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"prompt": "a"', "the line is not JSON: Expecting ',' delimiter at character 14"),
        (b'{"prompt": "\xff"}', "the line is not UTF-8: byte 12"),
        ("[1, 2]", "a line is a JSON object; got [1, 2]"),
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' comes twice"),
        ("[" * 100, "the line is nested more than 32 levels deep"),
        ('{"prompt": NaN}', "NaN is not JSON"),
        ('{"prompt": "\\ud800"}', "the line has half a character"),
        ('{"custom_id": 7, "prompt": "a"}', "custom_id must be a string of 1 to 512 bytes; got 7"),
        ('{"custom_id": "", "prompt": "a"}', "custom_id must be a string"),
        (json.dumps(CHAT | {"method": "GET"}), "method must be 'POST'; got 'GET'"),
        (json.dumps(CHAT | {"url": "/v1/embeddings"}), "url must be /v1/chat/completions or /v1/completions; got"),
        (json.dumps(CHAT | {"body": None}), "body must be an object of fields; got None"),
        (json.dumps(CHAT | {"extra": 1}), "an OpenAI line has custom_id, method, url, body; got 'extra'"),
        (json.dumps({**CHAT, "custom_id": None}), "an OpenAI line needs a custom_id"),
    ],
)
def test_a_broken_line_is_a_fault_of_one_sentence(text: str | bytes, sentence: str) -> None:
    assert fault(text).startswith(sentence)


def test_a_fault_says_its_line_and_the_others_go_on() -> None:
    lines = read('{"prompt": "a"}\n{oops\n{"prompt": "b"}\n')
    assert [(type(line), line.number) for line in lines] == [(Line, 1), (Fault, 2), (Line, 3)]


def test_an_id_that_came_before_is_a_fault_that_says_where() -> None:
    _, second, third = read('{"custom_id": "x", "prompt": "a"}\n{oops}\n{"custom_id": "x", "prompt": "b"}\n')
    assert isinstance(third, Fault)
    assert (third.number, third.custom_id) == (3, "x")
    assert third.refusal.message == "the custom_id 'x' is that of line 1 already"


def test_a_line_of_any_length_takes_no_more_memory_than_the_limit() -> None:
    class Endless(io.RawIOBase):
        """200 MB of one line, then a good one."""

        left = 200 << 20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            size = min(len(buffer), self.left)
            buffer[:size] = b"x" * size
            self.left -= size
            return size

    tracemalloc.start()
    (line,) = raw_lines(io.BufferedReader(Endless()), max_bytes=1 << 16)  # type: ignore[type-var]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line == RawLine(1, None, 200 << 20)
    assert peak < 8 << 20


def test_a_line_that_is_too_long_is_a_fault_and_the_next_one_is_read() -> None:
    data = b'{"prompt": "' + b"x" * 90 + b'"}\n{"prompt": "a"}\n'
    first, second = read_lines(raw_lines(io.BytesIO(data), max_bytes=64), CustomIds())
    assert isinstance(first, Fault) and first.refusal.message.startswith("the line has 105 bytes")
    assert isinstance(second, Line) and second.number == 2


@pytest.mark.parametrize("length", range(60, 70))
def test_the_limit_is_the_limit_whatever_ends_the_line(length: int) -> None:
    for end in (b"\n", b"\r\n", b""):
        lines = list(raw_lines(io.BytesIO(b"x" * length + end), max_bytes=64))
        assert [line.data is not None for line in lines] == [length <= 64]


def test_seeds_are_of_the_content_and_the_number() -> None:
    text = '{"prompt": "a"}\n{"prompt": "a"}\n'
    first, second = (line.seed for line in read(text) if isinstance(line, Line))
    assert first != second
    assert [line.seed for line in read(text) if isinstance(line, Line)] == [first, second]


def test_the_table_of_ids_remembers_the_first_line_of_each() -> None:
    ids = CustomIds()
    assert [ids.first_line(name, number) for number, name in enumerate("abcab", 1)] == [1, 2, 3, 1, 2]


def test_a_hundred_thousand_ids_take_little_memory() -> None:
    tracemalloc.start()
    ids = CustomIds()
    for number in range(100_000):
        assert ids.first_line(f"request-{number}", number) == number
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids.first_line("request-7", 200_000) == 7
    assert peak < 1 << 20


def test_a_full_temporary_directory_is_one_sentence() -> None:
    ids = CustomIds()
    ids._table.execute("PRAGMA max_page_count = 5")
    with pytest.raises(CannotWrite, match="database or disk is full; make room there, or name another in TMPDIR"):
        for number in range(1000):
            ids.first_line(f"request-{number}", number)


@pytest.mark.parametrize("seed", range(20))
def test_done_lines_are_those_that_were_added_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    numbers = rng.sample(range(1, 200), 150)
    done = DoneLines()
    for number in numbers:
        done.add(number)
    assert [number for number in range(1, 250) if number in done] == sorted(numbers)
    assert len(done) == 150
    again = DoneLines(done.ranges())
    assert [number for number in range(1, 250) if number in again] == sorted(numbers)
    assert again.ranges() == done.ranges()


def test_what_touches_is_one_range() -> None:
    done = DoneLines()
    for number in (1, 3, 2, 5, 4):
        done.add(number)
    assert done.ranges() == [(1, 6)]
    assert done.low == 6
