"""What the tests of the ledger share: a story of every kind of event, children, small disks."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import elmanctl
from elmanctl.ledger.events import Event
from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import commit, prepare
from elmanctl.ledger.store import LedgerWriter

# A process that takes leases and writes ledgers as it is told, one JSON line at a time.
CHILD = """
import json, sys, time
from pathlib import Path
from elmanctl.errors import ElmanError
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.contents import read_events
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter

lease = writer = None
for line in sys.stdin:
    order = json.loads(line)
    do = order.pop("do")
    try:
        if do == "acquire":
            folder = Path(order.pop("folder"))
            while time.monotonic() < order["at"]:
                pass
            del order["at"]
            lease = Lease.acquire(folder, **order)
            answer = {"fence": lease.fence}
        elif do == "open":
            writer = LedgerWriter(folder / LEDGER_FILE, lease)
            answer = {"events": len(writer.contents.events)}
        elif do == "append":
            answer = {"seq": writer.append("note", text=order["text"]).seq}
        elif do == "check":
            lease.check()
            answer = {}
        elif do == "release":
            lease.release()
            answer = {}
    except ElmanError as exc:
        answer = {"error": type(exc).__name__, "message": exc.message}
    print(json.dumps(answer), flush=True)
"""


class Child:
    """A Python process of its own with a pipe each way."""

    def __init__(self, script: str, *arguments: str) -> None:
        root = str(Path(elmanctl.__file__).parent.parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, do: str, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float = 20.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        assert ready, "the child does not answer"
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        self.tell(do, **order)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


@pytest.fixture
def obedient() -> str:
    """The script of a child that obeys orders."""
    return CHILD


@pytest.fixture
def spawn() -> Iterator[Callable[..., Child]]:
    """Start children that obey orders (or run a script of their own); all end with the test."""
    children: list[Child] = []

    def start(script: str = CHILD, *arguments: str) -> Child:
        children.append(Child(script, *arguments))
        return children[-1]

    yield start
    for child in children:
        child.close()


def run_description() -> dict[str, Any]:
    """Return what `run_created` tells of a run."""
    return {
        "name": "e88-tiny",
        "token": "a1b2c3d4",
        "model": "E88",
        "executor": "local",
        "settings": {"search": {"generations": 2}},
        "space": {"axes": [{"name": "n_heads"}]},
        "start": {"point": [0.5, 0.5], "source": "the middle of the space"},
        "optimizer": {"name": "pycma", "seed": 7, "sigma": 0.3, "population": 2},
        "budget": {"generations": 2},
        "data": {"path": "corpus.bin"},
        "protocol": {"seq_len": 64},
        "code": {"sha256": "0" * 64},
        "versions": {"elmanctl": "0"},
    }


def asked(
    generation: int, *names: str, replaces: str | None = None, repeats: str | None = None
) -> dict[str, Any]:
    """Return the data of `points_asked`."""
    return {
        "generation": generation,
        "evaluations": [
            {
                "id": name,
                "point": [0.25, 0.1 * index],
                "config": {"dim": 64, "lr": 1e-3},
                "parameters": 1000 + index,
                "seed": 3,
                **({"replaces": replaces} if replaces else {}),
                **({"repeats": repeats} if repeats else {}),
            }
            for index, name in enumerate(names)
        ],
        "refused": 1,
        "optimizer": {"file": f"g{generation:03}-00.pickle", "sha256": "f" * 64},
    }


def confirming(confirmed: str, *names: str, seed: int = 1001) -> dict[str, Any]:
    """Return the data of `confirmation_asked`, on seeds from `seed` on."""
    plans = asked(0, *names)["evaluations"]
    return {
        "evaluations": [
            {**plan, "confirms": confirmed, "seed": seed + index}
            for index, plan in enumerate(plans)
        ]
    }


def reevaluating(generation: int, reevaluates: str, *names: str) -> dict[str, Any]:
    """Return the data of a `reevaluation_asked` event."""
    plans = asked(generation, *names, repeats=reevaluates)["evaluations"]
    return {
        "generation": generation,
        "evaluations": [
            {**plan, "reevaluates": reevaluates, "seed": plan["seed"] + 1 + index}
            for index, plan in enumerate(plans)
        ],
    }


def intended(name: str, *tasks: tuple[str, int]) -> dict[str, Any]:
    """Return the data of `submission_intended`; a task is (evaluation, attempt)."""
    return {
        "submission": {
            "id": name,
            "job_name": f"elman-e88-tiny-{name}",
            "tasks": [
                {"index": index, "evaluation": evaluation, "attempt": attempt}
                for index, (evaluation, attempt) in enumerate(tasks)
            ],
            "resources": {"mem_gb": 40},
        }
    }


def stopping(evaluation: str, attempt: int) -> dict[str, Any]:
    """Return the data of `stop_decided`."""
    return {
        "evaluation": evaluation,
        "attempt": attempt,
        "stop": {
            **{"rule": "curve", "share": 0.25, "loss": 3.5, "predicted": 3.0, "limit": 1.5},
            **{"chance": 0.01, "compared": 4},
        },
    }


def finished(
    evaluation: str, attempt: int, kind: str, loss: float | None = None, size_bytes: int = 100
) -> dict[str, Any]:
    """Return the data of `attempt_finished`."""
    return {
        "evaluation": evaluation,
        "attempt": attempt,
        "verdict": {
            "kind": kind,
            "evidence": [{"source": "result", "text": "it says so", "file": "r.json", "line": 3}],
        },
        "result": None if loss is None else {"loss": loss},
        "size_bytes": size_bytes,
        "elapsed_s": 12.5,
    }


def answered(evaluation: str, by: str, loss: float) -> dict[str, Any]:
    """Return the data of `evaluation_answered`, as a completed one answers."""
    return {
        "evaluation": evaluation,
        "by": by,
        "state": "completed",
        "verdict": "completed",
        "loss": loss,
        "saved": {"elapsed_s": 12.5, "device_s": 12.5},
    }


def whole_story() -> list[tuple[str, dict[str, Any]]]:
    """Return a legal run in which every kind of event occurs."""
    return [
        ("run_created", {"run": run_description()}),
        ("controller_started", {"host": "login", "pid": 11}),
        ("points_asked", asked(0, "g000-e00", "g000-e01")),
        ("submission_intended", intended("s0001", ("g000-e00", 1), ("g000-e01", 1))),
        ("submission_refused", {"submission": "s0001", "error": "no such partition"}),
        ("submission_intended", intended("s0002", ("g000-e00", 1))),
        ("submission_abandoned", {"submission": "s0002", "error": "no job of this name"}),
        ("submission_intended", intended("s0003", ("g000-e00", 1), ("g000-e01", 1))),
        ("submission_accepted", {"submission": "s0003", "job_id": "77", "adopted": True}),
        ("attempt_started", {"evaluation": "g000-e01", "attempt": 1, "node": "gpu-1"}),
        ("attempt_finished", finished("g000-e00", 1, "completed", 1.5)),
        ("evaluation_closed", {"evaluation": "g000-e00", "state": "completed"}),
        ("attempt_finished", finished("g000-e01", 1, "oom")),
        ("evaluation_closed", {"evaluation": "g000-e01", "state": "failed"}),
        ("points_asked", asked(0, "g000-e02", replaces="g000-e01")),
        ("evaluation_closed", {"evaluation": "g000-e02", "state": "cancelled"}),
        ("run_paused", {"reason": "the disk is nearly full"}),
        ("evaluation_reopened", {"evaluation": "g000-e01", "changes": {"mem_gb": 80}, "by": "me"}),
        ("controller_started", {"host": "login", "pid": 12}),
        ("submission_intended", intended("s0004", ("g000-e01", 2))),
        ("submission_accepted", {"submission": "s0004", "job_id": "78", "adopted": False}),
        # Its worker completed before it read the request.
        ("stop_decided", stopping("g000-e01", 2)),
        ("attempt_finished", finished("g000-e01", 2, "completed", 1.25)),
        ("evaluation_closed", {"evaluation": "g000-e01", "state": "completed"}),
        ("points_asked", asked(0, "g000-e03", repeats="g000-e01")),
        ("evaluation_answered", answered("g000-e03", "g000-e01", 1.25)),
        ("value_reported", {"evaluation": "g000-e03", "value": 1.25}),
        ("generation_told", {"generation": 0, "told": [["g000-e01", 1.25], ["g000-e00", 1.5]]}),
        ("confirmation_asked", confirming("g000-e01", "c000-e00", "c000-e01")),
        ("evaluation_closed", {"evaluation": "c000-e01", "state": "cancelled"}),
        (
            "node_excluded",
            {
                "node": "gpu-1",
                "until": "2026-05-01T11:00:00.000Z",
                "reason": "node_failure of g000-e00",
            },
        ),
        ("node_readmitted", {"node": "gpu-1", "reason": "no other node is left"}),
        ("request_applied", {"request": "r1", "command": "clean", "answer": {"files": 2}}),
        ("cleaned", {"evaluation": "g000-e01", "kind": "logs", "freed_bytes": 60, "files": 2}),
        ("optimizer_rebuilt", {"optimizer": {"file": "again.pickle", "sha256": "e" * 64}}),
        ("note", {"text": "the node gpu-1 was replaced"}),
        ("search_ended", {"reason": "10 evaluations are trained"}),
        ("run_interrupted", {}),
        ("run_cancelled", {}),
        ("run_extended", {"generations": 3}),
        ("settings_changed", {"changes": {"slurm.partition": "long"}}),
        ("reevaluation_asked", reevaluating(1, "g000-e01", "g001-e00", "g001-e01")),
        ("run_finished", {"reason": "all generations are done"}),
    ]


@pytest.fixture
def story() -> list[tuple[str, dict[str, Any]]]:
    """A legal run in which every kind of event occurs, as (kind, data)."""
    return whole_story()


def record(writer: LedgerWriter, state: RunState, payload: Payload) -> Event:
    """Write an event and apply it to `state`; one that `state` refuses is not written."""
    prepared = prepare(writer, state, payload)
    commit(writer, state, prepared)
    return prepared.draft.event


@pytest.fixture
def build() -> Any:
    """The builders of event data: `build.asked(...)` and so on."""

    class Builders:
        run = staticmethod(run_description)
        asked = staticmethod(asked)
        confirming = staticmethod(confirming)
        intended = staticmethod(intended)
        finished = staticmethod(finished)
        stopping = staticmethod(stopping)
        answered = staticmethod(answered)

    return Builders


@pytest.fixture
def submitted(build: Any) -> list[tuple[str, dict[str, Any]]]:
    """Two evaluations, both submitted and accepted."""
    return [
        ("run_created", {"run": build.run()}),
        ("points_asked", build.asked(0, "g000-e00", "g000-e01")),
        ("submission_intended", build.intended("s1", ("g000-e00", 1), ("g000-e01", 1))),
        ("submission_accepted", {"submission": "s1", "job_id": "77", "adopted": False}),
    ]
