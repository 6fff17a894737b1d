"""The silent agent: stands where Ray wants an agent of its dashboard beside each node, and where there is no dashboard.

Ray's own takes longer to begin than the rest of Ray together, and says in the end which ports it serves. This one says
that it serves none, and waits for the end of the node, which holds the other end of its standard input.
"""

import sys
from pathlib import Path

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
NONE = "-1"


def main() -> None:
    for port in PORTS:
        tell_port(port, NONE)
    sys.stdin.read()


def tell_port(name: str, number: str) -> None:
    """Where the node looks for it; all of it at once."""
    file = Path(told("session-dir"), f"{name}_{told('node-id')}")
    early = file.with_name(f"{file.name}.early")
    early.write_text(number)
    early.rename(file)


def told(name: str) -> str:
    """What the command line says of it: `--node-id=…`."""
    prefix = f"--{name}="
    (value,) = (word.removeprefix(prefix) for word in sys.argv if word.startswith(prefix))
    return value


if __name__ == "__main__":
    main()
