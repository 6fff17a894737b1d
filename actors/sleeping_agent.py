"""The sleeping agent: stands where Ray wants an agent for runtime environments, and becomes it when one is asked for.

Ray's own takes most of a second of a core to begin, beside each node, for what a system never asks. This one keeps the
port and waits. Who knocks is let go, and Ray knocks again after a second; by then Ray's own is on its way.
"""

import os
import select
import socket
import sys

from actors.silent_agent import tell_port, told

PORT = "runtime_env_agent_port"


def main() -> None:
    address = told("node-ip-address"), int(told("runtime-env-agent-port"))
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.create_server(address, family=family) as door:
        port = door.getsockname()[1]
        tell_port(PORT, str(port))
        knocking, _, _ = select.select([door, sys.stdin], [], [])  # the other end of the second is the node's
    if door in knocking:
        flags = sys.orig_argv[1 : -len(sys.argv)]
        os.execv(sys.executable, [sys.executable, *flags, *sys.argv[1:], f"--runtime-env-agent-port={port}"])


if __name__ == "__main__":
    main()
