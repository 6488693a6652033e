"""Confirmation of a run's best, as lines, a table and plain data that several commands show."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from elmanctl.cli.output import Column, columns, counted, format_loss, print_table
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary
from elmanctl.search.confirmation import Confirmed, Standing
from elmanctl.search.costs import CONFIRMATION_KEYS, effective_setting
from elmanctl.search.difference import Difference, difference
from elmanctl.search.estimate import estimates, ties
from elmanctl.search.noise import PooledNoise


def confirmation_data(found: RunState | RunSummary, shown: Standing) -> dict[str, Any]:
    """Return the key `confirmation` with what it has shown; nothing for a run without any."""
    if not found.confirmed and not _is_planned(found):
        return {}
    return {
        "confirmation": {
            "is_confirmed": shown.winner is not None,
            "winner": shown.winner and _confirmed_data(shown.winner),
            "configurations": [_confirmed_data(each) for each in shown.confirmed],
            "undecided": shown.undecided,
            "failed": list(shown.failed),
            "noise": shown.noise and asdict(shown.noise),
        }
    }


def _confirmed_data(each: Confirmed) -> dict[str, Any]:
    derived = {key: getattr(each, key) for key in ("n", "mean", "sd", "se", "optimism")}
    return {**asdict(each), **derived}


def _is_planned(found: RunState | RunSummary) -> bool:
    return all(effective_setting(found, f"search.{key}") for key in CONFIRMATION_KEYS)


def facts_of(
    found: RunState | RunSummary, shown: Standing, estimate: Mapping[str, Any] | None
) -> list[tuple[str, str | None]]:
    """Return the labelled lines on a run's winner and noise, for the head of `status`."""
    best = None
    if estimate is not None and shown.winner is None:
        best = f"{estimate['evaluation']}, {describe_estimate(estimate)}"
    return [
        ("best", best),
        ("confirm", _progress(shown)),
        ("winner", _winner(found, shown)),
        ("noise", describe_noise(shown.noise) if shown.noise else None),
    ]


def _progress(shown: Standing) -> str | None:
    total = sum(each.n + len(each.failed) + len(each.undecided) for each in shown.confirmed)
    if not shown.undecided:
        return None
    return f"{total - shown.undecided} of {total} trainings of the best on fresh seeds are done"


def _winner(found: RunState | RunSummary, shown: Standing) -> str | None:
    """Return the winner, or that it is not confirmed where nothing is going on to confirm it."""
    if shown.winner is not None:
        return f"{shown.winner.evaluation}, {describe_confirmed(shown.winner)}{_failures(shown)}"
    if found.best_configuration is None or shown.undecided:
        return None
    if found.status is not RunStatus.FINISHED:
        return None
    return f"not confirmed{_failures(shown)}; {how_to_confirm(found)}"


def how_to_confirm(found: RunState | RunSummary) -> str:
    """Return the command that confirms the best of a finished search."""
    return f"`elmanctl confirm {found.run['name']}` trains the best again on fresh seeds"


def _failures(shown: Standing) -> str:
    if not shown.failed:
        return ""
    return f"; {counted(len(shown.failed), 'confirmation')} failed: {', '.join(shown.failed)}"


def describe_confirmed(each: Confirmed) -> str:
    """Describe the losses of a configuration on fresh seeds, beside its search value."""
    if each.mean is None or each.optimism is None:
        return "no fresh seed gave a loss"
    error = "" if each.se is None else f" ± {each.se:.4f}"
    side = "low" if each.optimism >= 0 else "high"
    return (
        f"mean {each.mean:.4f}{error} of {counted(each.n, 'fresh seed')}; "
        f"the search value {each.search_loss:.4f} was {abs(each.optimism):.4f} too {side}"
    )


def estimate_data(state: RunState) -> dict[str, Any] | None:
    """Return the mean of the best configuration over the seeds of a search, and what ties with it.

    None where the search had one seed for each, and nothing is known of the noise.
    """
    found = estimates(state)
    if not found or (found[0].se is None and found[0].n == 1):
        return None
    return {
        "evaluation": found[0].evaluations[0].id,
        "n": found[0].n,
        "mean": found[0].mean,
        "se": found[0].se,
        "ties": [each.evaluations[0].id for each in ties(found)],
    }


def describe_estimate(estimate: Mapping[str, Any]) -> str:
    """Describe the mean of the best configuration, and how many others the noise ties with it."""
    error = "" if estimate["se"] is None else f" ± {estimate['se']:.4f}"
    tied = len(estimate["ties"])
    others = f"; the noise does not tell it from {counted(tied, 'other')}" if tied else ""
    return f"mean {estimate['mean']:.4f}{error} of {counted(estimate['n'], 'seed')}{others}"


def describe_noise(noise: PooledNoise) -> str:
    """Describe the noise of a protocol."""
    degrees = "1 degree" if noise.degrees == 1 else f"{noise.degrees} degrees"
    return f"sd {noise.sd:.4f} between seeds ({degrees} of freedom)"


def print_confirmed(confirmed: Sequence[Confirmed], noise: PooledNoise | None) -> None:
    """Print the confirmed configurations in order of mean, and how far each is behind the first.

    That difference is tested as `elmanctl compare` does.
    """
    leads = [None, *(_behind(each, confirmed[0], noise) for each in confirmed[1:])]
    print_table(
        [
            *columns("CONFIRMED"),
            *columns("MEAN", "SE", "SEEDS", right=True),
            *columns("BEHIND", "BEHIND SE", "P", right=True, dispensable=2),
            *columns("SEARCH", "OPTIMISM", right=True, dispensable=1),
            Column("FAILED", wraps=True, may_be_empty=True),
        ],
        [
            [
                each.evaluation,
                *map(format_loss, (each.mean, each.se)),
                str(each.n),
                *map(format_loss, (lead.nats, lead.se) if lead else (None, None)),
                None if lead is None or lead.p is None else f"{lead.p:.3f}",
                *map(format_loss, (each.search_loss, each.optimism)),
                " ".join(each.failed) or None,
            ]
            for each, lead in zip(confirmed, leads, strict=True)
        ],
    )


def _behind(each: Confirmed, first: Confirmed, noise: PooledNoise | None) -> Difference | None:
    """Return how far a configuration is behind the first, None where one has no loss."""
    if each.sample is None or first.sample is None:
        return None
    return difference(each.sample, first.sample, noise, has_same_data_order=True)
