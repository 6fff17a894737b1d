"""Finding: the Ray on which our system runs, among all that live on this machine, or did. Waits for none of them long.

Ray's own "auto" takes the one that was started last, or any whose processes it sees, and waits most of a minute where
that has died. Here each is greeted first, as HTTP/2 greets, and one that keeps silent is passed over. Whoever starts a
system leaves a note of where, and those are looked for first. (To ask every Ray whether it has a system of ours was
rejected: one that takes another token keeps the asker for half a minute.)
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from actors import process
from actors.refusals import Unavailable
from actors.relay import relay
from actors.vigil import Vigil, is_near

ANSWER_SECONDS = 2.0
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and our settings: none
SETTINGS = 4  # the type of the frame with which a server greets
AUTH_MODE = "RAY_AUTH_MODE"
ray: Any = vars(process)["ray"]  # `actors/process.py` is the one file that imports it


def join(address: str, *, must_be_closed: bool = False) -> None:
    """Connect to the Ray at an address, or at "auto" to the one that is ours; Unavailable says why not."""
    found = place_of(address)
    is_signed = use_token()  # Ray itself looks for one only where it finds the address by itself
    if must_be_closed and not is_signed:
        check_loopback(found)
    try:
        process.connect(found)
    except ConnectionError:
        raise Unavailable(f"no Ray answers at {found}") from None
    except RuntimeError as trouble:
        if "Version mismatch" not in str(trouble):
            raise
        raise Unavailable(f"another version runs at {found}: {versions_in(str(trouble))}") from None


@contextmanager
def watched(address: str, act: Callable[[], None]) -> Iterator[str]:
    """Where to join the Ray at an address. `act` is called if it dies within the block, also while it is joined."""
    found = place_of(address)
    with Vigil(found, act):
        yield found


def place_of(address: str) -> str:
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    return address if "://" in address else find_ray(address)


def versions_in(message: str) -> str:
    """Ray's complaint on one line: `there Ray 2.59.0, Python 3.11.4; here Ray 2.60.0, Python 3.11.4`."""
    said = [line.strip() for line in message.splitlines()]
    versions = [" ".join(line.split(": ")) for line in said if line.startswith(("Ray: ", "Python: "))]
    return f"there {', '.join(versions[:2])}; here {', '.join(versions[2:4])}"


def find_ray(address: str) -> str:
    """Where to connect; at "auto" the likeliest that answers."""
    for candidate in known_rays() if address == "auto" else [address]:
        if answers(candidate):
            return candidate
        forget(candidate)
    raise Unavailable("no Ray is running here" if address == "auto" else f"no Ray answers at {address}")


def known_rays() -> list[str]:
    """The addresses of Rays on this machine, the likeliest first; some may have died."""
    services = ray._private.services
    found = (*noted(), services.find_bootstrap_address(None), *sorted(services.find_gcs_addresses()))
    return list(dict.fromkeys(filter(None, found)))


def notes() -> Path:
    return Path.home() / ".genserve" / "running"


def noted() -> list[str]:
    """Where this user started systems, the last one first."""
    with suppress(OSError):
        files = sorted(notes().iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        return [file.name for file in files]
    return []


def be_found() -> None:
    """Have other programs find the Ray that we are on: ours by a note, those that know only Ray by its address."""
    address = own_address()
    with suppress(OSError):  # a home that cannot be written costs a longer search
        notes().mkdir(parents=True, exist_ok=True)
        (notes() / address).touch()
    outside = ray._private.services.node_ip_address_from_perspective()
    if is_near(address) and not is_near(f"{outside}:0"):
        relay(outside, int(address.rpartition(":")[2]))


def own_address() -> str:
    """Of the Ray that we are on."""
    return str(ray.get_runtime_context().gcs_address)


def forget(address: str) -> None:
    """Remove the note of a Ray that has died, or has no system any more."""
    with suppress(OSError):
        (notes() / Path(address).name).unlink()


def answers(address: str) -> bool:
    """Whether a control store lives there: neither dead nor stopped, nor something else."""
    host, _, port = address.rpartition(":")
    with (
        suppress(OSError, ValueError, OverflowError),
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection,
    ):
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return True  # it would greet over TLS
        connection.sendall(GREETING)
        return connection.recv(9)[3:4] == bytes([SETTINGS])
    return False


def use_token() -> bool:
    """Whether Ray's ports take only what bears a token; where nobody has said, whether this user has one."""
    tokens = ray._private.authentication.authentication_token_setup
    if AUTH_MODE not in os.environ and tokens.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        tokens._enable_token_auth()
    return os.environ.get(AUTH_MODE, "").lower() == "token"


def check_loopback(address: str) -> None:
    """Refuse to start anything on a Ray that strangers reach and that asks nobody for a token."""
    if not is_near(address):
        raise Unavailable(
            f"the Ray at {address} is not on loopback and there is no token for it, so whoever reaches it could run "
            "code there: `ray get-auth-token --generate`, and start it with RAY_AUTH_MODE=token"
        )
