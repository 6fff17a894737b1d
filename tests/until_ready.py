"""`python -m tests.until_ready ADDRESS`: come back when the system there has its model loaded, and its public actor."""

import sys
import time

from actors.public_actor import is_published
from actors.refusals import Unavailable
from actors.system import connect
from actors.system_config import HANDLE

if __name__ == "__main__":
    until = time.monotonic() + 120
    while True:
        try:
            connect(sys.argv[1]).wait_until_ready()
            if is_published(HANDLE):
                break
        except Unavailable:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)
