import sys
from pathlib import Path

import pytest

from elmanctl.kernels.third_party import import_third_party

ASKS = """
import importlib.util
found = importlib.util.find_spec("kernels")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, after a checkout like ours with its links."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "kernels").symlink_to(Path(__file__).parents[2] / "elmanctl" / "kernels")
    (tmp_path / "foreign").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "foreign")
    monkeypatch.syspath_prepend(checkout)
    return tmp_path / "foreign"


def test_foreign_module_does_not_see_our_link(folder: Path) -> None:
    (folder / "asks_for_kernels.py").write_text(ASKS)
    assert import_third_party("asks_for_kernels").found is None
    assert "kernels" not in sys.modules


def test_link_is_back_after_an_import_that_fails(folder: Path) -> None:
    (folder / "breaks_at_import.py").write_text("import kernels")
    with pytest.raises(ModuleNotFoundError, match="kernels"):
        import_third_party("breaks_at_import")
    assert "kernels" not in sys.modules


def test_package_of_that_name_of_others_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text("")
    (folder / "asks_for_others.py").write_text(ASKS)
    monkeypatch.syspath_prepend(folder)
    found = import_third_party("asks_for_others").found
    assert Path(found.origin) == folder / "kernels" / "__init__.py"
