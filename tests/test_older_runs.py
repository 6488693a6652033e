"""Files that the code of older commits wrote: read, encoded to the same bytes, and gone on with.

Each `data/older-runs-COMMIT.tar.gz` was made by `benchmarks/older_runs/make.py` from a checkout of
that commit, and is never changed: what it holds is on users' disks.
"""

import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.jobs.claim import take_claim, this_worker
from elmanctl.ledger.events import Event, decode_line, encode_event
from elmanctl.ledger.files import encode_json
from elmanctl.ledger.holder import encode_holder
from elmanctl.ledger.lease import read_holder
from elmanctl.ledger.payloads import PAYLOADS, decode_payload
from elmanctl.ledger.records import Attempt, Evaluation, RunStatus, Verdict
from elmanctl.ledger.requests import pending_requests, wait_for_answer
from elmanctl.ledger.state import load_run
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import decode_config
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.progress import read_progress, read_table
from elmanctl.run.spec import AttemptSpec
from elmanctl.search.confirmation import standing
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.session import Session
from elmanctl.space.space import SearchSpace
from tests.command_line import CommandLine, QuickCommandLine
from tests.search.scripted import Run

ARCHIVES = sorted(Path(__file__).parent.glob("data/older-runs-*.tar.gz"))
# Keys of JSON that commands have had since these commits.
LATER = ("idle_share", "idle_gpu_hours", "gpus_held", "gpus_at_work")

RUNS = ("local", "every-kind", "long")


class Older(NamedTuple):
    """The files of one commit, unpacked; `about` says which, and what its code knew."""

    folder: Path
    about: dict[str, Any]

    def lines(self) -> Iterator[bytes]:
        """Yield every line of every ledger, without its newline."""
        for name in RUNS:
            yield from (self.folder / "runs" / name / "ledger.jsonl").read_bytes().splitlines()

    def files(self, name: str) -> list[Path]:
        """Return the files of a name."""
        found = sorted(self.folder.rglob(name))
        assert found, f"no {name} in the archive"
        return found

    def copy_run(self, name: str, folder: Path) -> Path:
        """Return a copy of a run in a folder of the test."""
        return Path(shutil.copytree(self.folder / "runs" / name, folder / "runs" / name))


@pytest.fixture(
    scope="module", params=ARCHIVES, ids=lambda path: path.name.split(".")[0].split("-")[-1]
)
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Older:
    """What one older commit wrote; to be read only."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return Older(folder, json.loads((folder / "about.json").read_text(encoding="utf-8")))


def test_there_are_files_of_older_commits() -> None:
    assert ARCHIVES
    assert sum(path.stat().st_size for path in ARCHIVES) < 150_000 * len(ARCHIVES)


def test_one_ledger_has_every_kind_of_event(older: Older) -> None:
    path = older.folder / "runs" / "every-kind" / "ledger.jsonl"
    assert {decode_line(line).kind for line in path.read_bytes().splitlines()} == {
        *older.about["kinds"]
    }
    assert len(older.about["kinds"]) >= 25
    assert {*older.about["kinds"]} <= {*PAYLOADS}


def test_every_event_is_encoded_to_its_own_bytes(older: Older) -> None:
    for line in older.lines():
        event = decode_line(line)
        data = encode(decode_payload(event.kind, event.data))
        assert encode_event(replace(event, data=data)) == line + b"\n"


def test_settings_and_space_of_a_run_are_encoded_to_themselves(older: Older) -> None:
    for name in RUNS:
        state = load_run(older.folder / "runs" / name).state
        state.changes.clear()
        settings, space = effective_settings(state), SearchSpace.decode(state.run["space"])
        assert json.dumps(settings.encode()) == json.dumps(state.run["settings"])
        assert json.dumps(space.encode()) == json.dumps(state.run["space"])


def test_what_workers_were_asked_is_encoded_to_its_own_bytes(older: Older) -> None:
    levels = set()
    for path in older.files("spec.json"):
        spec = AttemptSpec.read(path)
        assert encode_json(spec.encode()) == path.read_bytes()
        levels.add(spec.level)
    assert levels == {each["model"] for each in older.about["configs"]}


def test_what_workers_wrote_is_read(older: Older) -> None:
    for path in older.files("result.json"):
        data = path.read_bytes()
        table = read_table(path)
        assert table is not None and encode_json(table) == data
        verdict = decode(Verdict, table["verdict"], "verdict", LedgerCorrupt)
        assert verdict.kind == table["verdict"]["kind"]
    for path in older.files("heartbeat.json"):
        beat = json.loads(path.read_bytes())
        progress = read_progress(AttemptPaths(path.parent))
        assert progress is not None
        assert (progress.phase, progress.step) == (beat["phase"], beat["step"])
    for path in older.files("claim.json"):
        claim = take_claim(path, this_worker())
        assert not claim.is_ours
        assert claim.earlier == json.loads(path.read_bytes())


@pytest.mark.parametrize("part", ["config", "parameters"])
def test_configurations_of_every_model_mean_the_same(older: Older, part: str) -> None:
    for each in older.about["configs"]:
        config = decode_config(each["model"], each["config"]).encode()
        assert json.dumps(config) == json.dumps(each["config"])
        if part == "parameters":
            assert count_parameters(each["model"], config) == each["parameters"]


def test_pickles_of_jobs_that_wait_are_those_of_the_worker(older: Older) -> None:
    pickles = [path for path in older.files("task-*.pkl") if path.stat().st_size > 100]
    assert pickles
    for path in pickles:
        task = pickle.loads(path.read_bytes()).function
        assert f"{type(task).__module__}.{type(task).__name__}" == (
            "elmanctl.jobs.evaluation.EvaluateAttempt"
        )
        assert task.folder.startswith(f"{older.about['study']}/runs/")
        assert callable(task)


def test_lease_of_a_killed_controller_is_read(older: Older) -> None:
    holder = read_holder(older.folder)
    assert holder is not None
    assert encode_holder(holder) == (older.folder / "lease.json").read_bytes()


def test_requests_and_answers_are_read(older: Older, tmp_path: Path) -> None:
    folder = older.copy_run("every-kind", tmp_path)
    answers = {
        path.name.partition(".")[0]: json.loads(path.read_bytes())["answer"]
        for path in (folder / "requests").iterdir()
    }
    for path in (folder / "requests-kept").iterdir():
        path.rename(folder / "requests" / path.name)
    requests = pending_requests(folder)
    assert {request.command for request in requests} == {"cancel", "requeue"}
    for request in requests:
        data = json.loads((folder / "requests" / f"{request.id}.json").read_bytes())
        assert json.dumps(encode(request)) == json.dumps(data)
        answer = wait_for_answer(folder, request.id, timeout_s=0, poll_s=0, is_alive=lambda: False)
        assert answer == answers[request.id]


@pytest.mark.parametrize("run", RUNS)
def test_commands_say_what_those_of_the_commit_said(
    older: Older, run: str, elmanctl: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = QuickCommandLine(elmanctl, monkeypatch)
    monkeypatch.chdir(older.folder)

    def said(*arguments: str) -> str:
        done = quick(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.replace(str(older.folder), older.about["study"])

    commands: dict[str, Callable[[], Any]] = {
        "brief": lambda: json.loads(said("status", run, "--json")),
        "csv": lambda: said("ledger", "export", run, "--csv").splitlines(),
        "status": lambda: json.loads(said("status", run, "--all", "--json")),
        "export": lambda: json.loads(said("ledger", "export", run)),
        "verify": lambda: json.loads(said("ledger", "verify", run, "--json")),
        "show": lambda: {
            name: json.loads(said("show", run, name, "--json"))
            for name in load_run(older.folder / "runs" / run).state.evaluations
        },
    }
    recorded = json.loads((older.folder / "runs" / run / "shown.json").read_bytes())
    assert {"brief", "csv"} <= set(recorded)
    for name, words in recorded.items():
        assert _without_later(commands[name]()) == words, name


def _without_later(data: Any) -> Any:
    """Return what a command says without the keys that it has had since."""
    if isinstance(data, dict):
        return {k: _without_later(v) for k, v in data.items() if k not in LATER}
    return [_without_later(each) for each in data] if isinstance(data, list) else data


def test_snapshot_of_older_code_is_no_fault(
    older: Older, elmanctl: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive lacks other files of that run, and `verify` says so of those alone."""
    assert (older.folder / "runs" / "long" / "snapshot.json").is_file()
    quick = QuickCommandLine(elmanctl, monkeypatch)
    monkeypatch.chdir(older.folder)
    found = json.loads(quick("ledger", "verify", "long", "--json").stdout)
    assert {each["file"].split("/")[0] for each in found["findings"]} == {
        *("evaluations", "submissions")
    }


def test_every_evaluation_of_older_runs_is_explained(
    older: Older, elmanctl: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = QuickCommandLine(elmanctl, monkeypatch)
    monkeypatch.chdir(older.folder)
    for run in ("local", "every-kind"):
        listed = quick("status", run, "--all", "--json")
        rows = json.loads(listed.stdout)["evaluations"]
        assert rows
        for row in rows:
            name = row["evaluation"]
            told = json.loads(quick("explain", f"{run}/{name}", "--json").stdout)
            assert told["steps"][0]["what"].startswith("asked "), (run, name)
            assert told["command"].startswith(f"elmanctl eval {row.get('model', '')}")


def test_model_of_an_older_run_is_refused_with_the_way_to_one(
    older: Older, elmanctl: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = QuickCommandLine(elmanctl, monkeypatch)
    monkeypatch.chdir(older.folder)
    done = quick("sample", "local")
    assert done.returncode == 3 and "of `local` was not kept" in done.stderr
    assert "hint: " in done.stderr


# After the first of which of its generation's events the controller was killed.
INSTANTS = (
    *("points_asked", "submission_intended", "submission_accepted"),
    *("attempt_finished", "generation_told"),
)


@pytest.mark.usefixtures("no_power_failures")
@pytest.mark.parametrize("instant", INSTANTS)
def test_search_that_was_killed_goes_on_to_the_same_points(
    older: Older, instant: str, tmp_path: Path
) -> None:
    run = Run(older.copy_run("long", tmp_path))
    lines = run.paths.ledger.read_bytes().splitlines(keepends=True)
    whole = [decode_line(line.rstrip()) for line in lines]
    begin = [n for n, event in enumerate(whole) if event.kind == "points_asked"][-2]
    end = next(n for n in range(begin, len(whole)) if whole[n].kind == instant) + 1
    run.paths.ledger.write_bytes(b"".join(lines[:end]))
    run.world.script = {f"g{n:03}-e0{n % 8}": ["diverged"] for n in range(0, 14, 3)}
    state = load_run(run.folder).state
    for submission in state.submissions.values():
        # What was intended and not accepted, nobody heard of.
        if submission.job_id is not None:
            assert run.world.accept(submission) == submission.job_id
    for evaluation, attempt in state.live_attempts():
        leave_spec(run.paths.attempt(evaluation.id, attempt.number), evaluation, attempt)
    assert run.drive().status is RunStatus.FINISHED
    lines = run.paths.ledger.read_bytes().splitlines()
    assert_same_course([decode_line(line) for line in lines], whole)


@pytest.mark.usefixtures("no_power_failures")
def test_best_of_an_older_search_are_confirmed_when_asked_for(older: Older, tmp_path: Path) -> None:
    run = Run(older.copy_run("local", tmp_path))
    before = load_run(run.folder).state
    assert before.status is RunStatus.FINISHED
    for submission in before.submissions.values():
        if submission.job_id is not None:
            run.world.jobs[submission.job_name] = submission.job_id
    assert not run.drive().confirmations
    with Session.open(run.folder) as session:
        session.change_settings({"search.confirm_top": 2, "search.confirm_seeds": 2})
    state = run.drive()
    best = {e.id for e in before.ranked()[:1]}
    assert best < set(state.confirmations) and len(state.confirmations) == 2
    found = standing(state)
    assert found.winner is not None and [each.n for each in found.confirmed] == [2, 2]
    again = [e for e in state.evaluations.values() if e.confirms]
    assert len(again) == 4
    assert state.told == before.told


def leave_spec(paths: AttemptPaths, evaluation: Evaluation, attempt: Attempt) -> None:
    """Write what the archive lacks of a live attempt: the part of its spec for a stand-in."""
    spec = {
        "evaluation": evaluation.id,
        "attempt": attempt.number,
        "lr": evaluation.lr,
        "config": dict(evaluation.config),
        "parameters_expected": evaluation.parameters,
    }
    paths.folder.mkdir(parents=True)
    paths.spec.write_bytes(encode_json(spec))


def asked(events: list[Event]) -> dict[tuple[str, int], float]:
    """Return every coordinate of every point that was asked."""
    return {
        (each["id"], axis): value
        for event in events
        if event.kind == "points_asked"
        for each in event.data["evaluations"]
        for axis, value in enumerate(each["point"])
    }


def told(events: list[Event]) -> dict[str, float]:
    """Return every fitness that the optimizer was told."""
    return {
        name: value
        for event in events
        if event.kind == "generation_told"
        for name, value in event.data["told"]
    }


def assert_same_course(seen: list[Event], wanted: list[Event]) -> None:
    """Assert that the optimizer was asked and told the same, but for the last bits of a number.

    Those depend on the instructions that a processor has.
    """
    assert asked(seen) == pytest.approx(asked(wanted), rel=1e-6, abs=1e-9)
    assert told(seen) == pytest.approx(told(wanted), rel=1e-6, abs=1e-9)
    for kind in ("evaluation_closed", "evaluation_answered"):
        states = [
            {
                event.data["evaluation"]: event.data["state"]
                for event in events
                if event.kind == kind
            }
            for events in (seen, wanted)
        ]
        assert states[0] == states[1]


@pytest.fixture
def no_power_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
