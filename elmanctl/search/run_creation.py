"""Creation of a run: its folder, frozen code and the first event of its ledger, or nothing."""

import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import elmanctl
from elmanctl.codec import encode
from elmanctl.errors import EnvironmentNotReady, LedgerError, describe_os_error
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.payloads import RunCreated
from elmanctl.ledger.records import RunRecord
from elmanctl.ledger.reserve import full_disk, refill
from elmanctl.ledger.store import LedgerWriter
from elmanctl.run.frozen_code import freeze_code
from elmanctl.run.ownership import refuse_open_parents
from elmanctl.run.paths import RunPaths
from elmanctl.run.protocol import run_protocol
from elmanctl.search.optimizers.registry import packages_of
from elmanctl.search.plan import SearchPlan


def create_run(plan: SearchPlan) -> Path:
    """Create the run of a plan and return its folder.

    Raises FileExistsError when the name was taken meanwhile, EnvironmentNotReady for a disk that
    is full or not writable, ForeignFolder where another user could replace the folder.
    """
    refuse_open_parents(plan.folder)
    try:
        with _new_folder(plan.folder):
            paths = RunPaths(plan.folder)
            with Lease.acquire(plan.folder) as lease:
                code = freeze_code(paths.code)
                refill(plan.folder)
                _write_split(plan, paths.split)
                created = RunCreated(run=_run_record(plan, code))
                data = encode(created)
                LedgerWriter.create(paths.ledger, lease, created.event_kind(), **data).close()
    except FileExistsError:
        raise
    except (OSError, LedgerError) as exc:
        failure = full_disk(exc) or (exc if isinstance(exc, OSError) else exc.__cause__)
        if not isinstance(failure, OSError):
            raise
        raise EnvironmentNotReady(
            f"the run's folder cannot be made: {describe_os_error(failure)}; nothing was started",
            hint="make room, e.g. with `elmanctl clean`, and start again"
            if full_disk(exc)
            else "set `paths.runs` to a folder of yours on a shared disk, with hard links",
        ) from exc
    return plan.folder


def _write_split(plan: SearchPlan, path: Path) -> None:
    """Leave what is held out to the workers, whose nodes may lack the cache."""
    share = plan.settings.train.holdout
    if share:
        from elmanctl.run.split import find_split, write_split

        write_split(find_split(plan.corpus, share), plan.corpus, share, path)


def discard_run(folder: Path) -> None:
    """Remove a run that was created and never driven, unless another process drives it by now."""
    with suppress(LedgerError), Lease.acquire(folder):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; remove all that was made if the body fails."""
    made = [path for path in folder.parents if not path.exists()]
    try:
        folder.mkdir(parents=True)
        try:
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except BaseException:
        for path in made:
            # Another process may use it by now.
            with suppress(OSError):
                path.rmdir()
        raise


def _run_record(plan: SearchPlan, code: str) -> RunRecord:
    search, train = plan.settings.search, plan.settings.train
    packages = (*packages_of(search.optimizer), "submitit")
    return RunRecord(
        name=plan.name,
        token=secrets.token_hex(4),
        model=plan.model,
        executor=plan.executor,
        settings=plan.settings.encode(),
        space=plan.space.encode(),
        audit=dict(plan.effects),
        start={
            "point": list(plan.start),
            "values": plan.start_values,
            "source": plan.start_source,
        },
        optimizer={
            "name": search.optimizer,
            "seed": search.seed,
            "sigma": search.sigma,
            "population": search.population,
        },
        budget={"generations": search.generations, "params": search.params},
        data={
            "path": str(plan.corpus.path),
            "sha256": plan.corpus.sha256,
            "size_bytes": plan.corpus.size_bytes,
            "unigram_nats": plan.unigram_nats,
        },
        protocol=run_protocol(train),
        code={"sha256": code},
        versions={
            "elmanctl": elmanctl.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    )
