"""Relay: lets the programs of this machine reach a Ray that listens on loopback under the machine's own address too.

A program that knows only Ray says `ray.init(address="auto")`. Ray then puts the address that the machine has in its
network in the place of 127.0.0.1, where a Ray on loopback does not listen, and waits for most of a minute. So somebody
listens there: whoever calls from the machine itself is passed on, anybody else is hung up on before a byte is read.
"""

import socket
import threading
from contextlib import suppress

CHUNK_BYTES = 1 << 16


def relay(outside: str, port: int) -> None:
    """Pass on, from threads, for as long as this process lives."""
    with suppress(OSError):  # the address is gone, or the port is taken: plain Ray is told an address then
        server = socket.create_server((outside, port))
        threading.Thread(target=_accept, args=(server, outside, port), name="relay", daemon=True).start()


def _accept(server: socket.socket, outside: str, port: int) -> None:
    while True:
        caller, (address, *_) = server.accept()
        # who calls this address from the machine that has it, calls from it; nobody else can and get an answer
        if address != outside:
            caller.close()
            continue
        try:
            callee = socket.create_connection(("127.0.0.1", port))
        except OSError:
            caller.close()
            continue
        for source, sink in ((caller, callee), (callee, caller)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
