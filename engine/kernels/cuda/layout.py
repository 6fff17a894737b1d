"""Layout: how activations lie, row by row or as the image in shared memory that the tiled product reads."""

from dataclasses import dataclass

from engine.kernels.cuda.source import Constants


@dataclass(frozen=True, slots=True)
class Layout:
    """Of activations (T, width)."""

    order: int  # 0: row by row; 4 or 8: as the tiled product of weights of so many bits reads them
    tokens: int  # rows of a tile

    def shape(self, rows: int, width: int) -> tuple[int, int]:
        return -(-rows // self.tokens) * self.tokens, width

    @property
    def constants(self) -> Constants:
        return {"ORDER": self.order, "TOKENS": self.tokens}


ROW_BY_ROW = Layout(0, 1)
