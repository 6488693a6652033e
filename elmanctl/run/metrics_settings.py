"""Metrics settings: where the numbers of a training go besides metrics.jsonl.

The one record that a run's settings and its specs share; no part of the protocol.
"""

import re
from dataclasses import dataclass

from elmanctl.bounds import setting
from elmanctl.errors import ConfigError

# What W&B takes for the name of a project, below that of an entity or alone.
_PROJECT = re.compile(r"(?:[^/\\#?%:\s]+/)?[^/\\#?%:]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """[metrics]: where the numbers of a training go besides metrics.jsonl."""

    tensorboard: bool = setting(
        False, "Also write TensorBoard event files, into the attempt's folder", absent=False
    )
    wandb: str = setting(
        "", "Also log to this project of Weights & Biases: PROJECT or ENTITY/PROJECT", absent=""
    )

    def check_together(self) -> None:
        """Raise ConfigError for a name that no project can have."""
        if self.wandb and not _PROJECT.fullmatch(self.wandb):
            raise ConfigError(
                f"`metrics.wandb` is `{self.wandb}`, which is no name of a project",
                hint="PROJECT or ENTITY/PROJECT, at most 128 characters, without / \\ # ? % :",
            )

    @property
    def asked(self) -> tuple[str, ...]:
        """The settings that ask for something."""
        return tuple(name for name in ("tensorboard", "wandb") if getattr(self, name))
