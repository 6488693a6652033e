"""What `show` says of memory that ran out."""

from typing import Any

import pytest

from tests.command_line import QuickCommandLine
from tests.search.scripted import Runs

HALVINGS: list[dict[str, Any]] = [
    {"step": 1, "from": 2, "to": 1, "text": "CUDA out of memory"},
    {"step": 2, "from": 1, "to": 1, "activation_checkpointing": True, "text": "again"},
    {"step": 64, "from": 8, "to": 4, "in": "validation", "text": "CUDA out of memory"},
]


@pytest.mark.parametrize(
    ("told", "lines"),
    [
        ({"micro_batch": 2}, ["  micro-batch 2"]),
        (
            {"micro_batch": 1, "halvings": HALVINGS, "activation_checkpointing": "by need"},
            [
                "  micro-batch 1",
                "  halved      2 to 1 in step 1, 8 to 4 in the validation after step 64: "
                "memory ran out",
                "  recomputed  activations, by need",
            ],
        ),
        ({"activation_checkpointing": "on"}, ["  recomputed  activations, on"]),
    ],
)
def test_show_says_how_the_micro_batch_came_to_be(
    quick: QuickCommandLine,
    corpus: Any,
    tmp_path_factory: pytest.TempPathFactory,
    told: dict[str, Any],
    lines: list[str],
) -> None:
    scripted = Runs(quick.folder / "runs", corpus, tmp_path_factory.mktemp("templates"))
    run = scripted.new(name="scarce", generations=1)
    run.world.told = told
    run.drive()
    shown = quick("show", "scarce", "best").stdout.splitlines()
    about = ("  micro-batch ", "  halved ", "  recomputed ")
    assert [line for line in shown if line.startswith(about)] == lines
