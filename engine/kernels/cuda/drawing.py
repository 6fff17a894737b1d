"""Drawing: one token a row in one launch; settings and tokens go through pinned memory."""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.kernels.cuda.mailbox import HEADER, Mailbox
from engine.kernels.cuda.source import Launcher


class Drawing:
    """Draws as engine/sampling.py defines it."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self._launchers: dict[tuple[bool, bool], Launcher] = {}

    def draw(self, logits: mx.array, knobs: NDArray[np.float32], is_greedy: bool, is_filtered: bool) -> mx.array:
        """(R,) int32, of logits (R, V), V a multiple of 4."""
        rows = logits.shape[0]
        reply, slot = self.mailbox.expect(rows)
        letter = reply if is_greedy else self.mailbox.send([np.ascontiguousarray(knobs, np.float32).view(np.int32)])
        tokens = self.put(logits, letter, reply, is_greedy, is_filtered)
        self.mailbox.note(tokens, slot, rows)
        return tokens

    def put(self, logits: mx.array, letter: mx.array, reply: mx.array, is_greedy: bool, is_filtered: bool) -> mx.array:
        """The launch: settings are in the letter, tokens go to the reply as well."""
        rows, size = logits.shape
        launcher = self.launcher(is_greedy, is_filtered and not is_greedy)
        return launcher([logits, letter, reply], (rows, 1, 1), [(rows,)], [mx.int32], size=size)[0]

    def launcher(self, is_greedy: bool, is_filtered: bool) -> Launcher:
        found = self._launchers.get((is_greedy, is_filtered))
        if found is None:
            constants = {"IS_GREEDY": is_greedy, "IS_FILTERED": is_filtered, "HEADER": HEADER}
            found = Launcher("draw", [], ["logits", "letter", "reply"], ["out"], constants, threads=1024)
            self._launchers[is_greedy, is_filtered] = found
        return found
