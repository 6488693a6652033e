"""Every error elmanctl raises on purpose, each with the exit code the command line ends with.

ElmanError                exit 1
├── UsageError            exit 2   wrong combination of arguments
├── ConfigError           exit 2   elman.toml, environment or preset: names key and source
├── InvalidConfiguration  exit 2   a model configuration that cannot be built or run
├── InvalidModel          exit 2   a file that is no saved model, or a damaged one
├── NotFound              exit 3   no such run, evaluation, model or file
├── EnvironmentNotReady   exit 4   no sbatch, no torch, no data, no such partition
├── ForeignFolder         exit 4   a folder that other users may write to
├── LedgerError           exit 1
│   ├── LedgerCorrupt              damage that is not a torn last line
│   ├── LedgerLocked               another process holds the run's lease
│   ├── LeaseLost                  this process held the lease and it was taken over
│   └── LedgerTooNew               written by a newer version
├── SubmissionError       exit 1   sbatch refused; carries its stderr
├── EvaluationFailed      exit 1   raised only by `elmanctl eval`
├── PartialFailure        exit 5   some of many items failed
└── SearchPaused          exit 6   the search stopped itself; nothing is lost
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import ClassVar


class ElmanError(Exception):
    """A failure with a message for the user and, where one exists, the next thing to try."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.parts: tuple[ElmanError, ...] = ()


class UsageError(ElmanError):
    """Arguments that do not go together."""

    exit_code = 2


class ConfigError(ElmanError):
    """A setting that cannot be used; the message names its key and where it was set."""

    exit_code = 2


class InvalidConfiguration(ElmanError):
    """A model configuration that cannot be built, sized or run."""

    exit_code = 2


class InvalidModel(ElmanError):
    """A file that is no saved model, of another version, or damaged."""

    exit_code = 2


class NotFound(ElmanError):
    """Something named by the user does not exist."""

    exit_code = 3


class EnvironmentNotReady(ElmanError):
    """The machine or cluster lacks something that the command needs."""

    exit_code = 4


class ForeignFolder(ElmanError):
    """A file or folder that another user owns, or that all users may write to."""

    exit_code = 4


class LedgerError(ElmanError):
    """The ledger cannot be read or written."""


class LedgerCorrupt(LedgerError):
    """A ledger damaged elsewhere than in its torn last line."""


class LedgerLocked(LedgerError):
    """Another process is writing this ledger."""


class LeaseLost(LedgerError):
    """This process lost the run's lease; it must not write any more."""


class LedgerTooNew(LedgerError):
    """A ledger written by a newer version of elmanctl."""


class SubmissionError(ElmanError):
    """The scheduler refused a submission; the message carries its own words."""


class EvaluationFailed(ElmanError):
    """A single foreground evaluation did not complete."""


class PartialFailure(ElmanError):
    """Some of several items failed; the message lists them."""

    exit_code = 5


class SearchPaused(ElmanError):
    """The search stopped itself before its end; `resume` goes on."""

    exit_code = 6


class Faults:
    """Collects the errors of independent checks, to report all at once.

    Each check stands in a `with faults:` of its own, `raise_any` after the last.
    """

    def __init__(self) -> None:
        self._found: list[ElmanError] = []

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ElmanError):
            self.add(error)
            return True
        return False

    def add(self, error: ElmanError) -> None:
        """Keep an error; one that was joined of several counts as these."""
        self._found += error.parts or (error,)

    def raise_any(self) -> None:
        """Raise what was collected, as one error of the first one's class."""
        if self._found:
            raise together(self._found)


@contextmanager
def os_errors_as(kind: type[ElmanError], attempted: str) -> Iterator[None]:
    """Raise an OSError inside the context as `kind`; `attempted` says what could not be done."""
    try:
        yield
    except OSError as exc:
        raise kind(f"{attempted}: {exc.strerror}") from exc


def together(faults: Sequence[ElmanError]) -> ElmanError:
    """Return one error that reports several; of one, that one."""
    first = faults[0]
    if len(faults) == 1:
        return first
    # An error that is raised in one place may be made in a way of its own.
    kind = next(known for known in type(first).__mro__ if known.__module__ == __name__)
    messages = dict.fromkeys(each.message for each in faults)
    hints = dict.fromkeys(each.hint for each in faults if each.hint)
    joined: ElmanError = kind("; ".join(messages), hint="; ".join(hints) or None)
    joined.parts = tuple(faults)
    return joined


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None when none is near."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[matches[0]] if matches else None


def describe_os_error(error: OSError) -> str:
    """Return the message of an OSError, with its file where it names one."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{error.strerror or error}"


def meant(name: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """Return a hint at the known name most like `name`, or `otherwise` when none is near."""
    near = nearest(name, known)
    return f"did you mean `{near}`?" if near else otherwise
