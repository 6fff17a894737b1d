"""Book: a batch's results, its errors, and the record that vouches for both. What is in it is done, and done once."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from actors.journal_file import Disk
from deploy.jobs.done_lines import DoneLines
from deploy.jobs.input_file import InputFile, changed_while_read, looked_at_again
from deploy.jobs.output_file import OutputFile
from deploy.jobs.progress_record import SETTINGS, Progress, ProgressRecord, Tally
from deploy.jobs.troubles import CannotWrite, OutputTaken, cannot_write
from engine.completion import Usage


@dataclass(frozen=True, slots=True)
class Places:
    """Where a batch writes, all beside its output."""

    results: Path

    @property
    def errors(self) -> Path:
        return self.results.with_name(f"{self.results.stem}.errors{self.results.suffix}")

    @property
    def of_same_errors(self) -> "Places":
        """Those of the batch whose errors would go to this output, if its name is one for errors."""
        return Places(self.results.with_name("".join(self.results.name.rsplit(".errors", 1)) or self.results.name))

    @property
    def progress(self) -> Path:
        return self.results.with_name(f"{self.results.name}.progress")


class Book:
    """Owned by one batch, from opening to `close`."""

    def __init__(self, places: Places, file: InputFile, settings: str, disk: Disk | None = None) -> None:
        check_places(places, file.path)
        self.warning: str | None = None
        self._file = file
        with ExitStack() as opened:
            batch = {"the input": f"{file.num_bytes} bytes, {file.digest}", SETTINGS: settings}
            self._record = ProgressRecord(places.progress, batch, disk)
            opened.callback(self._record.close)
            found, damage = self._record.recover()
            if damage is not None:
                self.warning = (
                    f"the progress record is damaged at byte {damage.offset} ({damage.reason}); "
                    "lines that it does not vouch for are done again"
                )
            if found is None:
                check_unwritten(places)
            progress = found or Progress()
            self.done = DoneLines(progress.done)
            self.tally = progress.tally
            self.is_complete = progress.is_complete
            is_under_way = found is not None and not found.is_complete
            self._results = OutputFile(places.results, progress.results, is_under_way, disk)
            opened.callback(self._results.close)
            self._errors = OutputFile(places.errors, progress.errors, is_under_way, disk)
            opened.callback(self._errors.close)
            if not progress.done and not progress.is_complete:
                self._record.vouch(self._progress())  # under these settings, whatever an earlier start was told
            self._is_vouched = True
            self._open = opened.pop_all()

    def answered(self, number: int, line: bytes, usage: Usage) -> None:
        self._results.write(line)
        self._note(
            number,
            replace(
                self.tally,
                answered=self.tally.answered + 1,
                prompt_tokens=self.tally.prompt_tokens + usage.prompt_tokens,
                completion_tokens=self.tally.completion_tokens + usage.completion_tokens,
            ),
        )

    def failed(self, number: int, line: bytes) -> None:
        self._errors.write(line)
        self._note(number, replace(self.tally, failed=self.tally.failed + 1))

    def passed_over(self, number: int) -> None:
        """Nothing was asked on this line."""
        self._note(number, self.tally)

    def vouch(self) -> None:
        """Have everything so far outlive whatever comes: first the output, then the word that it is there.

        Not if the input is another one by now: what was read since the last time may be of either.
        """
        if self._is_vouched:
            return
        self._results.sync()
        self._errors.sync()
        self._file = looked_at_again(self._file)
        self._record.vouch(self._progress())
        self._is_vouched = True

    def complete(self) -> None:
        """Every line is done; fewer, or more, than there were at first are refused."""
        self._file = looked_at_again(self._file)
        if len(self.done) != self._file.num_lines:
            raise changed_while_read(self._file)
        self.is_complete, self._is_vouched = True, False
        self.vouch()

    def close(self) -> None:
        """Let others have the files. An error file with nothing in it is not left behind."""
        self._errors.remove_if_empty()
        self._open.close()

    def _note(self, number: int, tally: Tally) -> None:
        self.done.add(number)
        self.tally = tally
        self._is_vouched = False

    def _progress(self) -> Progress:
        done = tuple(self.done.ranges())
        return Progress(done, self._results.mark, self._errors.mark, self.tally, self.is_complete)


def check_places(places: Places, source: Path) -> None:
    try:
        check_outputs(places, source)
    except OSError as trouble:  # a name that is too long
        raise cannot_write(places.results, trouble) from None
    other = places.of_same_errors
    if other.errors == places.results and other.progress.exists():
        raise OutputTaken(f"{places.results} is the error file of {other.results}: name another output", "output")


def check_outputs(places: Places, source: Path) -> None:
    for path in (places.results, places.errors):
        if path.is_dir():
            raise CannotWrite(f"{path} is a directory; a file is wanted", "output")
        if path.exists() and source.exists() and path.samefile(source):
            raise CannotWrite(f"{path} is the input; the output must be another file", "output")
        if path.exists() and not path.is_file():
            raise CannotWrite(f"{path} is no regular file; a batch writes to one, in which it can go on", "output")
    if not places.results.parent.is_dir():
        raise CannotWrite(f"{places.results} cannot be written: {places.results.parent} is no directory", "output")


def check_unwritten(places: Places) -> None:
    """Without a record nothing vouches for what is there, and it is not ours to cut."""
    for path in (places.results, places.errors):
        try:
            is_written = path.exists() and path.stat().st_size > 0
        except OSError as trouble:
            raise cannot_write(path, trouble) from None
        if is_written:
            raise OutputTaken(f"{path} exists and no batch has begun it: remove it, or name another output", "output")
