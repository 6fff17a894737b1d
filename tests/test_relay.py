"""The relay passes on what the machine itself says to its own address, and nothing that others say."""

import socket
import threading

import pytest

from actors.relay import relay

OWN, STRANGE = "127.0.0.3", "127.0.0.4"  # all of 127.* is this machine's; as callers they differ


@pytest.fixture
def port() -> int:
    """Of a server on loopback that says everything back, in capitals."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with server, server.accept()[0] as caller:
            while data := caller.recv(100):
                caller.sendall(data.upper())

    threading.Thread(target=answer, daemon=True).start()
    number: int = server.getsockname()[1]
    return number


def call(port: int, own_address: str) -> bytes:
    with socket.create_connection((OWN, port), 5.0, source_address=(own_address, 0)) as connection:
        connection.sendall(b"hello")
        return connection.recv(100)


def test_the_machine_itself_is_passed_on_and_hears_the_answer(port: int) -> None:
    relay(OWN, port)
    assert call(port, OWN) == b"HELLO"


def test_anybody_else_is_hung_up_on(port: int) -> None:
    relay(OWN, port)
    with pytest.raises(ConnectionError):
        assert call(port, STRANGE) == b""
        raise ConnectionResetError  # a quiet end is as good as a loud one
    assert call(port, OWN) == b"HELLO"


def test_a_port_that_is_taken_is_left_alone(port: int) -> None:
    with socket.create_server((OWN, port)) as taken:
        relay(OWN, port)
        assert taken.fileno() >= 0
