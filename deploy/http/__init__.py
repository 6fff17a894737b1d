"""The door: an OpenAI interface and a page, over any backend that answers requests. FastAPI stands here alone."""

from deploy.http.app import build_app
from deploy.http.backend import Backend
from deploy.http.inline_backend import InlineBackend
from deploy.http.keys import Keys
from deploy.http.serve import serve

__all__ = ["Backend", "InlineBackend", "Keys", "build_app", "serve"]
