"""Page: the files of the live page, from memory. No path of a request ever becomes a path on disk."""

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    for file in files("deploy.http").joinpath("page").iterdir():
        kind = MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            router.add_api_route(path, sender(file.read_bytes(), kind), methods=["GET"])
    return router


def sender(content: bytes, media_type: str):  # type: ignore[no-untyped-def]  # FastAPI wants a plain function
    async def send() -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    return send
