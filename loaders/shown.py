"""How a refusal shows a value that somebody else wrote: in one line, short, whatever it is and however deep."""

from reprlib import Repr

_short = Repr()
_short.maxstring = _short.maxother = 200
_short.maxlist = 8

shown = _short.repr
