"""Which folders only one node has, by their names; pure.

Whoever reads a log is on another machine, and cannot ask the disk.
"""

import re

from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts.failed_calls import WORDS_OF

_FULL = rf"(?:{WORDS_OF[VerdictKind.DISK_FULL]})"
_FOLDER = (
    r"/(?:tmp|var/tmp|dev/shm|run|var/spool"
    r"|lscratch|local|local[-_]?scratch|scratch[-_/]local)(?![\w.-])"
)
# Slurm's copy of the script speaks, wherever what it could not write lies.
_PATH = rf"(?<![\w./]){_FOLDER}(?!\S*slurm_script\b)"

NODE_DISK_KEYS = "space quota"
# A line that names a full disk, and a folder of temporary files as where it is.
NODE_DISK = rf"(?i:{_PATH}.*{_FULL}|{_FULL}.*{_PATH}|\btemp file for here-document: {_FULL})"

_NAMED = re.compile(NODE_DISK)
_PLACE = re.compile(_PATH)


def names_node_disk(text: str, run_folder: str = "") -> str | None:
    """Return the folder that a line on a full disk names and that only a node has, if any.

    None where the run lies there, too.
    """
    if not _NAMED.search(text):
        return None
    folders = (found[0] for found in _PLACE.finditer(text))
    return next((name for name in folders if not run_folder.startswith(f"{name}/")), None)
