"""netCDF files that read other files outside their folder, or promise far more numbers than they hold.

Read `check_netcdf`, which refuses them. netCDF files are HDF5, where a link can lead to another file, an
array can lie in one, and an array can be declared larger than any memory. Nothing here knows what is in an
array.
"""

from math import prod
from pathlib import Path
from typing import Any

import h5py
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

from workbench.errors import WorkbenchError
from workbench.files import check_ordinary

FREE_BYTES, FACTOR = 2**30, 64
"""Arrays may promise this many bytes, or this many times the file's size: more than compression saves."""


def check_netcdf(path: Path) -> None:
    """Raise `WorkbenchError` where a file names others outside its folder, or promises too many numbers.

    Raises:
        OSError: it cannot be read, or is not an HDF5 file.
    """
    known: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in known:
            known.add(file)
            check_ordinary(file)
            # HDF5 follows the links of linked files too.
            waiting += [path.parent / name for name in _linked_files(file)]


def _linked_files(path: Path) -> list[str]:
    """The other HDF5 files that a file names."""
    names: list[str] = []
    with h5py.File(path, "r") as file:
        promised = 0
        for thing in _contents(file):
            if isinstance(thing, h5py.ExternalLink):
                names.append(_checked(path, thing.filename))
            elif isinstance(thing, h5py.Dataset):
                # A null dataset has no shape.
                promised += prod(thing.shape or (0,)) * thing.dtype.itemsize
                for raw_file, *_ in thing.external or ():
                    check_ordinary(path.parent / _checked(path, raw_file))
                if thing.is_virtual:
                    sources = {source.file_name for source in thing.virtual_sources()} - {"."}
                    names += [_checked(path, name) for name in sources]
    if promised > max(FREE_BYTES, FACTOR * path.stat().st_size):
        raise WorkbenchError(
            f"{str(path)!r} promises arrays of {promised / 2**30:.0f} GiB and has {path.stat().st_size} "
            "bytes: it is not a result."
        )
    return names


def _contents(file: h5py.File) -> list[Any]:
    """The arrays and external links of a file, each array once."""
    things: list[Any] = []
    known: set[Any] = set()
    waiting: list[Any] = [file]
    while waiting:
        group = waiting.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                things.append(link)
            # A soft link leads to a name in the same file, which is visited itself.
            if not isinstance(link, h5py.HardLink):
                continue
            thing = group[name]
            place = h5o.get_info(thing.id).addr
            if place in known:  # groups may hold each other
                continue
            known.add(place)
            if isinstance(thing, h5py.Group):
                waiting.append(thing)
            else:
                things.append(thing)
    return things


def _checked(path: Path, name: str) -> str:
    """The name of a file beside `path`. Raises `WorkbenchError` for one that lies anywhere else."""
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise WorkbenchError(
            f"{str(path)!r} reads from {name!r}, which is not in its own folder. Such files are not opened."
        )
    return name
