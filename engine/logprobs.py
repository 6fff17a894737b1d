"""Logprobs: how likely chosen tokens were under the model's own distribution, and which were likeliest.

Taken before temperature, penalties and cuts. Computed for the rows that ask, and only for them.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from engine.event import TokenLogprob


@dataclass(frozen=True, slots=True)
class Scores:
    """Lazy scores of some rows."""

    tokens: mx.array  # (Q,)
    chosen: mx.array  # (Q,)
    top_ids: mx.array  # (Q, k)
    top: mx.array  # (Q, k)

    def arrays(self) -> list[mx.array]:
        return [self.tokens, self.chosen, self.top_ids, self.top]

    def read(self, num_top: list[int]) -> list[TokenLogprob]:
        """The scores as records, each with as many alternatives as it asked for."""
        tokens, chosen = np.array(self.tokens).tolist(), np.array(self.chosen).tolist()
        ids, values = np.array(self.top_ids), np.array(self.top)
        order = np.lexsort((ids, -values), axis=-1)  # likeliest first, of equals the smaller id
        records = []
        for line, count in enumerate(num_top):
            best = order[line, :count]
            top = tuple(zip(ids[line, best].tolist(), values[line, best].tolist(), strict=True))
            records.append(TokenLogprob(tokens[line], chosen[line], top))
        return records


def score(logits: mx.array, tokens: mx.array, num_top: int) -> Scores:
    """Logprobs of one token for each row of logits, (Q, V), and of the `num_top` likeliest."""
    logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logits, tokens[:, None].astype(mx.int32), axis=-1).squeeze(-1)
    count = min(max(num_top, 1), logits.shape[1])
    ids = mx.argpartition(-logits, kth=count - 1, axis=-1)[:, :count]
    return Scores(tokens, chosen, ids, mx.take_along_axis(logits, ids, axis=-1))
