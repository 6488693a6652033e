"""Every file of a run follows the user's umask, temporary files and links included."""

import os
import stat
from pathlib import Path

import pytest

from elmanctl.errors import ForeignFolder, LedgerError
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.requests import answer_request, leave_request, pending_requests
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.ledger.submissions import Submission
from elmanctl.run.corpus_packing import pack_folders
from elmanctl.run.paths import RunPaths
from elmanctl.run.training import Training
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from elmanctl.search.plan import plan_search
from elmanctl.search.run_creation import create_run
from elmanctl.search.session import Session
from elmanctl.search.single_evaluation import prepare_once, train_prepared
from elmanctl.settings import DataSettings, SearchSettings, Settings
from tests.schedulers.slurm_tools import SlurmTools
from tests.search.scripted import AXES, MODEL, Run, ScriptedExecutor, World
from tests.users import NOBODY, as_root, nobody, umask

pytestmark = pytest.mark.usefixtures("no_power_failures")


class Submitting(ScriptedExecutor):
    """Makes all that a submission to Slurm makes, before the world takes it."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._slurm = SlurmExecutor(world.paths, max_jobs=64)

    def submit(self, submission: Submission, folder: Path) -> str:
        self._slurm.submit(submission, folder)
        return super().submit(submission, folder)


@pytest.fixture
def settings(corpus: Path) -> Settings:
    return Settings(
        model=MODEL,
        search=SearchSettings(space="tiny", axes=AXES, generations=2, population=4),
        train=Training(steps=2, batch=2, seq_len=16, warmup_steps=0, threads=1, device="cpu"),
        data=DataSettings(path=str(corpus)),
    )


def walk_a_run(root: Path, settings: Settings) -> tuple[RunState, set[str]]:
    """Do all that makes files; return the run's end, and the names of files seen on the way."""
    root.mkdir()
    plan = plan_search("e88", settings, executor="local", name="run", runs=root / "runs")
    run = Run(create_run(plan))
    seen: set[str] = set()

    def look(session: Session) -> None:
        if not seen:
            leave_request(run.folder, "clean", {})
        seen.update(_checked_modes(root))

    run.view.every_turn = look
    state = run.drive(executor=Submitting(run.world))
    leave_request(run.folder, "clean", {})
    (request,) = pending_requests(run.folder)
    answer_request(run.folder, request, {})
    train_prepared(prepare_once("e88", {**MODEL, "n_heads": 2}, settings, out=root / "single"))
    (root / "texts").mkdir()
    (root / "texts" / "a.txt").write_text("text", encoding="utf-8")
    pack_folders([root / "texts"], root / "corpus.bytes")
    return state, seen | _checked_modes(root)


def _checked_modes(root: Path) -> set[str]:
    """Assert the mode of everything below; return the names of the files."""
    mask = os.umask(0)
    os.umask(mask)
    names = set()
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            continue
        whole = 0o777 if stat.S_ISDIR(status.st_mode) else 0o666
        assert stat.S_IMODE(status.st_mode) & 0o777 == whole & ~mask, path
        names.add(path.name)
    return names


@pytest.fixture
def fake_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmTools:
    tools = SlurmTools(tmp_path / "bin", monkeypatch)
    tools.answer("sbatch", "4711\n")
    return tools


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
@pytest.mark.usefixtures("fake_sbatch")
def test_whole_run_leaves_files_as_the_umask_says(
    mask: int, settings: Settings, tmp_path: Path
) -> None:
    with umask(mask):
        state, seen = walk_a_run(tmp_path / "study", settings)
    assert state.status is RunStatus.FINISHED
    assert seen >= {
        *("ledger.jsonl", "lease.json", "code", "loop.py"),
        *("submission.sh", "task-0.pkl", "spec.json", "result.json", "requests"),
        *("claim.json", "metrics.jsonl", "heartbeat.json", "corpus.bytes"),
    }


@as_root
@pytest.mark.usefixtures("fake_sbatch")
def test_group_reads_what_the_umask_lets_it_read_and_nobody_else_does(
    settings: Settings, tmp_path: Path
) -> None:
    group = NOBODY - 7
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    study = tmp_path / "shared"
    study.mkdir()
    os.chown(study, 0, group)
    study.chmod(0o2770)
    with umask(0o027):
        state, _ = walk_a_run(study / "study", settings)
    folder = study / "study" / "runs" / "run"
    with nobody(group):
        assert load_run(folder).state.evaluations.keys() == state.evaluations.keys()
        assert RunPaths(folder).ledger.read_bytes()
        with pytest.raises(LedgerError, match="cannot take the lease"):
            Session.open(folder)
    with nobody(), pytest.raises(LedgerError, match="cannot read"):
        load_run(folder)


@as_root
def test_run_of_somebody_else_is_read_and_neither_opened_nor_asked(
    settings: Settings, tmp_path: Path
) -> None:
    plan = plan_search("e88", settings, executor="local", name="run", runs=tmp_path / "runs")
    folder = create_run(plan)
    before = sorted(path.name for path in folder.iterdir())
    os.chown(folder, NOBODY, NOBODY)
    assert load_run(folder).state.run["name"] == "run"
    with pytest.raises(ForeignFolder, match="belongs to `nobody`"):
        Session.open(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_search_in_a_folder_that_anybody_may_replace_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    plan = plan_search("e88", settings, executor="local", name="run", runs=tmp_path / "runs")
    with pytest.raises(ForeignFolder, match="everybody may replace"):
        create_run(plan)
    assert list(tmp_path.iterdir()) == []
