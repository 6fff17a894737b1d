"""Absent: the routes that clients know from elsewhere and this server has not. Each is refused by its name."""

from deploy.http.errors import NotFound

INSTEAD = "this server answers /v1/chat/completions and /v1/completions"
ABSENT = {
    "/v1/assistants": INSTEAD,
    "/v1/audio": "this server reads and writes text alone",
    "/v1/batches": "`genserve batch` answers a file of prompts",
    "/v1/conversations": INSTEAD,
    "/v1/embeddings": "this server's models write text",
    "/v1/evals": INSTEAD,
    "/v1/files": "`genserve batch` answers a file of prompts",
    "/v1/fine_tuning": "adapters that were trained elsewhere are loaded by /v1/load_lora_adapter",
    "/v1/images": "this server reads and writes text alone",
    "/v1/messages": INSTEAD,
    "/v1/moderations": "this server's models write text",
    "/v1/realtime": INSTEAD,
    "/v1/rerank": "this server's models write text",
    "/v1/responses": INSTEAD,
    "/v1/threads": INSTEAD,
    "/v1/uploads": "`genserve batch` answers a file of prompts",
    "/v1/vector_stores": "this server's models write text",
    "/v1/videos": "this server reads and writes text alone",
}


def nothing_at(path: str) -> NotFound:
    """What is said of a path without a route."""
    name = "/".join(path.split("/")[:3])
    if name in ABSENT:
        return NotFound(f"{name} is not supported by this server: {ABSENT[name]}")
    return NotFound(f"there is nothing at {path[:100]}")
