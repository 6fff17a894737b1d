"""Keys: who asks. A key has a name, and the name is the tenant: for fairness, for the prefix cache, for ownership.

Without keys everybody is one tenant and may do everything, which is right for a laptop. With keys, what concerns all
(loading adapters, suspending, killing the engine) is for the key named `operator`.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.http.errors import Forbidden, Unauthorized, error_response
from engine.refusal import BadRequest
from loaders.json_file import read_json

OPERATOR = "operator"
OPEN_PATHS = ("/health",)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
MIN_KEY_CHARACTERS = 8


class Keys:
    """API keys by name. Only their digests are kept."""

    def __init__(self, keys: Mapping[str, str] = {}) -> None:
        owners: dict[str, str] = {}
        for name, key in keys.items():
            if not NAME.fullmatch(name) or not isinstance(key, str) or len(key) < MIN_KEY_CHARACTERS:
                raise BadRequest(
                    f"the key {name[:64]!r} needs a plain name and at least {MIN_KEY_CHARACTERS} characters"
                )
            if owners.setdefault(key, name) != name:
                raise BadRequest(f"{owners[key]!r} and {name!r} have the same key; each name needs one of its own")
        self._digests = {name: digest(key) for name, key in keys.items()}

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Keys from a JSON file: `{"alice": "sk-..."}`. At least one: none would let everybody in."""
        keys = read_json(path)
        if not keys:
            raise BadRequest(f"{path} holds no keys, and without keys everybody is let in")
        return cls(keys)

    def __len__(self) -> int:
        return len(self._digests)

    def tenant_of(self, authorization: str) -> str | None:
        """Whose key this is, or None. Every key is compared, each in constant time."""
        given, tenant = digest(key_in(authorization)), None
        for name, known in self._digests.items():
            if hmac.compare_digest(given, known):
                tenant = name
        return tenant

    def check_operator(self, tenant: str) -> None:
        if self._digests and tenant != OPERATOR:
            raise Forbidden(f"this is for the key named {OPERATOR!r}")


NO_KEYS = Keys()


class KeyCheck:
    """Middleware: no key, no entry, whatever the route, but for asking whether the server is alive."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["state"]["tenant"] = ""
        if len(self.keys) and scope["path"] not in OPEN_PATHS:
            headers = dict(scope["headers"])
            tenant = self.keys.tenant_of(headers.get(b"authorization", b"").decode("latin-1"))
            if tenant is None:
                # A browser that visits the page asks its user; a program is told which scheme it is.
                is_visit = headers.get(b"sec-fetch-mode") == b"navigate"
                challenge = {"www-authenticate": ("Basic" if is_visit else "Bearer") + ' realm="genserve"'}
                refusal = Unauthorized("an API key of this server is wanted: Authorization: Bearer KEY")
                return await error_response(refusal, scope, challenge)(scope, receive, send)
            scope["state"]["tenant"] = tenant
        return await self.app(scope, receive, send)


def key_in(authorization: str) -> str:
    """The key of `Bearer KEY`, or of a browser's `Basic`, where it is the password."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return credentials.strip() if scheme.lower() == "bearer" else ""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
