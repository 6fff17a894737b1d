"""Troubles of a whole batch: what ends it before its last line. Started again, it goes on."""

from pathlib import Path
from typing import ClassVar

from engine.refusal import Refusal


class CannotWrite(Refusal):
    """The results, or what is kept beside them meanwhile, have no place to go."""

    code: ClassVar[str] = "cannot_write"


class ChangedInput(Refusal):
    """What was begun with one input, or with one set of settings, is continued with another."""

    code: ClassVar[str] = "changed_input"


class OutputTaken(Refusal):
    """Another batch, or no batch at all, wrote the file that is named as output."""

    code: ClassVar[str] = "output_taken"


def cannot_write(path: Path, trouble: OSError) -> CannotWrite:
    return CannotWrite(f"{path} cannot be written: {trouble.strerror or trouble}", "output")
