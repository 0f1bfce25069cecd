"""Finds the bundled data and circuits, in a checkout and in an installed wheel.

Read `data` and `circuits`. A wheel carries both folders as `workbench/_data` and `workbench/_circuits`; in a
checkout they stand beside the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def data() -> Path:
    """The folder of embedded models and prompt sets."""
    return _folder("data")


def circuits() -> Path:
    """The folder of studied circuits."""
    return _folder("circuits")


def _folder(name: str) -> Path:
    bundled = _PACKAGE / f"_{name}"
    return bundled if bundled.is_dir() else _PACKAGE.parent / name
