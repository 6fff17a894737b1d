"""Readiness: waiting for a system's models, or for the sentence that says why there will be none.

A process whose files are at fault is started again like any other, and reads the same files. Whoever waits for it need
not: its supervisor knows what it died of, for as long as it lives itself.
"""

import time

from actors.client import Client
from actors.model_choice import ModelChoice, function_at
from actors.refusals import Unavailable
from actors.tree import TreeNode, status
from engine.refusal import BadRequest, BrokenFile, Refusal, UnknownModel, Unsupported

PAUSE_SECONDS = 0.05
LOOK_SECONDS = 0.25  # between two looks at the whole tree
FAULTS = {kind.__name__: kind for kind in (BadRequest, BrokenFile, UnknownModel, Unsupported)}


def wait_until_ready(client: Client, choice: ModelChoice, seconds: float) -> None:
    """Until every partition has a model server to send to."""
    until, next_look = time.monotonic() + seconds, 0.0
    while not client.is_ready():
        if time.monotonic() > next_look:
            look_for_faults(choice)
            next_look = time.monotonic() + LOOK_SECONDS
        if time.monotonic() > until:
            raise Unavailable(f"no model was ready within {seconds:.0f} s")
        time.sleep(PAUSE_SECONDS)


def look_for_faults(choice: ModelChoice) -> None:
    """Raises what the system has died of, or is about to."""
    root = status()
    if root is None:
        function_at(choice.make_tokenizer)(choice)  # it fails so soon that its supervisor may be gone already
        raise Unavailable("the system gave up; its children's deaths are in Ray's logs")
    fault = fault_below(root)
    if fault is not None:
        raise fault


def fault_below(node: TreeNode) -> Refusal | None:
    """What a process of the tree last died of, if that was a refusal to go on with what it read."""
    match node.last_reason:
        case ("error", str(kind), str(sentence)) if kind in FAULTS:
            return FAULTS[kind](sentence)
    return next(filter(None, map(fault_below, node.children)), None)
