"""The silent agent: stands where Ray wants an agent of its dashboard beside each node, and where there is no dashboard.

Ray's own takes longer to begin than the rest of Ray together, and says in the end which ports it serves. This one says
that it serves none, and waits for the end of the node, which holds the other end of its standard input.
"""

import os
import sys
from pathlib import Path

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
NONE = "-1"


def main() -> None:
    prefix = "--session-dir="
    (session,) = (word.removeprefix(prefix) for word in sys.argv if word.startswith(prefix))
    for port in PORTS:
        file = Path(session, f"{port}_{os.environ['RAY_NODE_ID']}")
        early = file.with_name(f"{file.name}.early")
        early.write_text(NONE)
        early.rename(file)
    sys.stdin.read()


if __name__ == "__main__":
    main()
