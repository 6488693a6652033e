from pathlib import Path

from elmanctl.run.paths import AttemptPaths, RunPaths


def test_foreground_evaluation_may_lie_right_under_the_root() -> None:
    assert AttemptPaths(Path("/tmp/eval")).run_folder == Path("/")
    assert AttemptPaths(Path("/mnt/runs/eval")).run_folder == Path("/")


def test_every_file_of_a_run_has_its_place() -> None:
    run = RunPaths(Path("runs/tiny"))
    attempt = run.attempt("g000-e01", 2)
    paths = [
        run.ledger,
        run.code,
        run.optimizer,
        run.requests,
        run.submission("s1"),
        attempt.spec,
        attempt.claim,
        attempt.heartbeat,
        attempt.metrics,
        attempt.earlier_metrics(0),
        attempt.result,
    ]
    assert [path.relative_to(run.folder).as_posix() for path in paths] == [
        "ledger.jsonl",
        "code",
        "optimizer",
        "requests",
        "submissions/s1",
        "evaluations/g000-e01/attempt-2/spec.json",
        "evaluations/g000-e01/attempt-2/claim.json",
        "evaluations/g000-e01/attempt-2/heartbeat.json",
        "evaluations/g000-e01/attempt-2/metrics.jsonl",
        "evaluations/g000-e01/attempt-2/metrics-restart-0.jsonl",
        "evaluations/g000-e01/attempt-2/result.json",
    ]
    assert attempt.name_in_run == "evaluations/g000-e01/attempt-2"
    assert AttemptPaths(attempt.folder) == attempt
