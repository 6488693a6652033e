"""Import of third-party modules, shielded from the `kernels` symlink of this checkout."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_SYMLINK = "kernels"


def import_third_party(name: str) -> ModuleType:
    """Import a third-party module; exceptions of the import propagate.

    transformers, a common dependency, probes for Hugging Face's package `kernels` and fails on the
    symlink of that name at the top of this checkout.  The symlink is on the path only when
    `python -m elmanctl` or pytest starts there; it is then hidden for the duration of the import.
    """
    if not _resolves_to_checkout(_SYMLINK):
        return importlib.import_module(name)
    sys.modules[_SYMLINK] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[_SYMLINK]


def _resolves_to_checkout(name: str) -> bool:
    if name in sys.modules:
        return False
    spec = importlib.util.find_spec(name)
    here = Path(__file__).with_name("__init__.py")
    return spec is not None and spec.origin is not None and here.samefile(spec.origin)
