"""ProgressRecord: which lines are done, and up to where the output files hold their answers.

Each entry says everything, and the last sound one counts. Entries are framed with length and checksum: what is
damaged, at any byte, is noticed, and an older entry vouches for less. What it does not vouch for is cut off the
output and done again, which gives the same text. Results were not merely appended with their numbers beside them, as
two files that are written one after the other disagree whenever something dies in between.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.journal import Journal
from actors.journal_file import Disk
from actors.journal_records import Damage
from actors.refusals import JournalFailing, JournalTaken
from deploy.jobs.done_lines import Range
from deploy.jobs.output_file import Mark
from deploy.jobs.troubles import CannotWrite, ChangedInput, OutputTaken, cannot_write
from engine.refusal import BrokenFile

VERSION = 1
SETTINGS = "the settings"  # of a batch, and as such no matter before its first line is done
MAX_BYTES = 1 << 20  # then it is begun anew with the last entry


@dataclass(frozen=True, slots=True)
class Tally:
    """What was done so far, over all starts."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is."""

    done: tuple[Range, ...] = ()
    results: Mark = Mark()
    errors: Mark = Mark()
    tally: Tally = field(default_factory=Tally)
    is_complete: bool = False


class ProgressRecord:
    """Owned by one batch; a second owner is refused. `batch` names what it belongs to: input, settings."""

    def __init__(self, directory: Path, batch: Mapping[str, str], disk: Disk | None = None) -> None:
        self._directory = directory
        self._batch = dict(batch)
        try:
            self._journal = Journal(directory, "power-safe", disk)
        except JournalTaken as taken:
            raise OutputTaken(f"another batch is at work here: {taken.message}", "output") from None
        except OSError as trouble:
            raise cannot_write(directory, trouble) from None

    def recover(self) -> tuple[Progress | None, Damage | None]:
        """What the last sound entry says, if there is one, and what was found damaged behind it."""
        found = self._journal.recover()
        if not found.records:
            if found.damage is not None and not found.damage.is_torn_tail:
                raise BrokenFile(f"the progress record {self._journal.path} is damaged from its beginning")
            return None, found.damage
        entry = found.records[-1]
        self._check(entry)
        return progress_of(entry), found.damage

    def vouch(self, progress: Progress) -> None:
        """Write an entry; on the disk when this returns."""
        entry = entry_of(self._batch, progress)
        try:
            if self._journal.num_bytes > MAX_BYTES or progress.is_complete:
                self._journal.compact([entry])
            else:
                self._journal.append(entry)
                self._journal.commit()
        except JournalFailing as failing:
            raise CannotWrite(f"the progress record cannot be written: {failing.message}", "output") from None

    def close(self) -> None:
        self._journal.close()

    def _check(self, entry: Any) -> None:
        if not isinstance(entry, dict) or entry.get("version") != VERSION:
            raise BrokenFile(f"the progress record {self._journal.path} was written by another version of genserve")
        is_used = entry["done"] or entry["is_complete"]
        for name, value in self._batch.items():
            then = entry["batch"].get(name)
            if then != value and (is_used or name != SETTINGS):
                raise ChangedInput(
                    f"{name} changed since this batch was begun ({then} then, {value} now): "
                    f"name another output, or remove {self._directory} and the output to begin anew",
                    name,
                )


def entry_of(batch: Mapping[str, str], progress: Progress) -> dict[str, Any]:
    tally = progress.tally
    return {
        "version": VERSION,
        "batch": dict(batch),
        "done": [list(lines) for lines in progress.done],
        "results": [progress.results.num_bytes, progress.results.checksum],
        "errors": [progress.errors.num_bytes, progress.errors.checksum],
        "tally": [tally.answered, tally.failed, tally.prompt_tokens, tally.completion_tokens],
        "is_complete": progress.is_complete,
    }


def progress_of(entry: Mapping[str, Any]) -> Progress:
    return Progress(
        tuple((start, end) for start, end in entry["done"]),
        Mark(*entry["results"]),
        Mark(*entry["errors"]),
        Tally(*entry["tally"]),
        entry["is_complete"],
    )
