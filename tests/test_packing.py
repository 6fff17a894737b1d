"""Which messages Python's own pickle carries: those that have nothing in them but the project's and plain values."""

import pickle
from decimal import Decimal
from typing import Any

import pytest

from actors.asking import ask_of
from actors.envelope import Call
from actors.packing import packed
from actors.pid import Pid
from actors.request_server import Submit
from engine.refusal import BadRequest
from tests.servers import Echo


def test_the_projects_own_comes_back_equal() -> None:
    ask = ask_of("one", {"prompt": "Grüße", "max_tokens": 3, "stop": ["a"]})
    message = (Pid("client", 1), Call(Submit(ask, "listener", True)))
    bytes_of_it = packed(message)
    assert bytes_of_it is not None and pickle.loads(bytes_of_it) == message


def test_a_refusal_comes_back_as_one() -> None:
    bytes_of_it = packed((True, BadRequest("too long", "prompt")))
    assert bytes_of_it is not None
    _, refusal = pickle.loads(bytes_of_it)
    assert (type(refusal), refusal.message, refusal.param) == (BadRequest, "too long", "prompt")


@pytest.mark.parametrize("value", [Decimal(1), Echo, lambda: 0, pytest.fail, ValueError("x"), {"deep": [Decimal(1)]}])
def test_what_has_something_of_others_in_it_is_left(value: Any) -> None:
    assert packed((None, Call(value))) is None
