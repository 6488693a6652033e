"""Every error elmanctl raises on purpose, each with the exit code the command line ends with.

ElmanError                exit 1
├── UsageError            exit 2   wrong combination of arguments
├── ConfigError           exit 2   elman.toml, environment or preset: names key and source
├── InvalidConfiguration  exit 2   a model configuration that cannot be built or run
├── NotFound              exit 3   no such run, evaluation, model or file
├── EnvironmentNotReady   exit 4   no sbatch, no torch, no data, no such partition
├── ForeignFolder         exit 4   a folder that somebody else may write to
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

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class ElmanError(Exception):
    """A failure with a message for the user and, where one exists, the next thing to try."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ElmanError):
    """Arguments that do not go together."""

    exit_code = 2


class ConfigError(ElmanError):
    """A setting that cannot be used; the message names its key and where it was set."""

    exit_code = 2


class InvalidConfiguration(ElmanError):
    """A model configuration that cannot be built, sized or run."""

    exit_code = 2


class NotFound(ElmanError):
    """Something named by the user does not exist."""

    exit_code = 3


class EnvironmentNotReady(ElmanError):
    """The machine or cluster lacks something that the command needs."""

    exit_code = 4


class ForeignFolder(ElmanError):
    """A file or folder that belongs to somebody else, or that everybody may write to."""

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


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None when none is near."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[matches[0]] if matches else None
