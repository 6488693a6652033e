"""Modules of other projects, imported where our own checkout cannot mislead them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_LINKED = "kernels"


def import_foreign(name: str) -> ModuleType:
    """Import and return a module of another project.

    transformers, which several of them import, looks for a package `kernels` (of Hugging Face) and
    fails on the link of that name at the top of our checkout.  No installation puts that on the
    path, but `python -m elmanctl` and pytest do, when they are started there: for the time of the
    import the link is not there.
    Raises what the import raises.
    """
    if not _is_ours(_LINKED):
        return importlib.import_module(name)
    sys.modules[_LINKED] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[_LINKED]


def _is_ours(name: str) -> bool:
    if name in sys.modules:
        return False
    spec = importlib.util.find_spec(name)
    here = Path(__file__).with_name("__init__.py")
    return spec is not None and spec.origin is not None and here.samefile(spec.origin)
