"""An adapter stack in the extension's form: `a` where it lies, `b` copied by blocks of outputs."""

from collections.abc import Callable

from engine.kernels.cpu import _native
from engine.lora import AdapterStack
from engine.weights import LINEAR_MODULES


class NativeStack:
    """Made once for a stack. One that is made again shares the copy, of which it writes a slot only."""

    def __init__(self, stack: AdapterStack, copied: _native.Adapters | None = None, slot: int | None = None) -> None:
        self.adapters = copied or _native.make_adapters(len(stack.layers))
        for (index, name), stacked in stack.modules():
            layout = stacked.layout
            rows = slice(0, None) if slot is None else layout.rows_of(slot)
            module = LINEAR_MODULES.index(name)
            self.adapters.set(index, module, stacked.a, stacked.b[rows], layout.scale, layout.starts, first=rows.start)

    def let_go(self) -> Callable[[AdapterStack, int], "NativeStack"]:
        copied = self.adapters = self.adapters.copied()
        return lambda stack, slot: NativeStack(stack, copied, slot)
