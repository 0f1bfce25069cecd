"""Files are written whole or not at all, and nothing that exists is replaced unasked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import OutputExists


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputExists` when something is there that must not be replaced."""
    if path.is_dir():
        raise OutputExists(f"{str(path)!r} is a folder. Choose another path.")
    if path.exists() and not path.is_file():
        raise OutputExists(f"{str(path)!r} is a device or a pipe and not a file. Choose another path.")
    if path.exists() and not overwrite:
        raise OutputExists(f"{str(path)!r} exists. Choose another path, or pass overwrite=True to replace it.")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to: it takes the place of `path` if all went well, and is gone otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
