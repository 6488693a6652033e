"""Part of the build: sees that an editable installation finds the package by its link."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LinkToPackage(BuildHookInterface):
    """Makes src/elmanctl anew in a copy that lost it: an sdist, or an archive without links."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raise OSError where the link is not there and cannot be."""
        link = Path(self.root, "src", "elmanctl")
        if version != "editable" or (link / "__init__.py").is_file():
            return
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)  # the text file that it becomes where there are no links
        try:
            link.symlink_to(Path("..", "elmanctl"))
        except OSError as exc:
            raise OSError(
                f"`pip install -e` needs a link {link}; `pip install .` does not"
            ) from exc
