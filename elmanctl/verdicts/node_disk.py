"""Full disks of a single node, recognized by the name of the folder in a message; pure.

Logs are read on another machine, which cannot look at the node's disk.
"""

import re

from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts.errnos import MESSAGES

_FULL = rf"(?:{MESSAGES[VerdictKind.DISK_FULL]})"
_FOLDER = (
    r"/(?:tmp|var/tmp|dev/shm|run|var/spool"
    r"|lscratch|local|local[-_]?scratch|scratch[-_/]local)(?![\w.-])"
)
# A message of Slurm's copy of the script names that copy, wherever the full disk is.
_PATH = rf"(?<![\w./]){_FOLDER}(?!\S*slurm_script\b)"

NODE_DISK_KEYS = "space quota"
# A line that reports a full disk and names a folder for temporary files.
NODE_DISK = rf"(?i:{_PATH}.*{_FULL}|{_FULL}.*{_PATH}|\btemp file for here-document: {_FULL})"

_NAMED = re.compile(NODE_DISK)
_PLACE = re.compile(_PATH)


def names_node_disk(text: str, run_folder: str = "") -> str | None:
    """Return the node-local folder that a line names as full, None if the run is in it, too."""
    if not _NAMED.search(text):
        return None
    folders = (found[0] for found in _PLACE.finditer(text))
    return next((name for name in folders if not run_folder.startswith(f"{name}/")), None)
