"""An adapter stack in the extension's form: `a` where it lies, `b` copied by blocks of outputs."""

from engine.kernels.cpu import _native
from engine.lora import AdapterStack
from engine.weights import LINEAR_MODULES


class NativeStack:
    """Made once for a stack. One that follows another shares its copy, of which it writes a slot only."""

    def __init__(self, stack: AdapterStack, before: _native.Adapters | None = None, slot: int | None = None) -> None:
        self.adapters = before.copy() if before else _native.make_adapters(len(stack.layers))
        for (index, name), stacked in stack.modules():
            layout = stacked.layout
            rows = slice(0, None) if slot is None else layout.rows_of(slot)
            module = LINEAR_MODULES.index(name)
            self.adapters.set(index, module, stacked.a, stacked.b[rows], layout.scale, layout.starts, first=rows.start)

    def follow(self, stack: AdapterStack, slot: int) -> "NativeStack":
        return NativeStack(stack, self.adapters, slot)
