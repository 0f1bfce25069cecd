"""netCDF files that ask for other files, or for more memory than there is, are refused before anything is read."""

import os

import h5py
import numpy as np
import pytest

from workbench import results
from workbench.errors import WorkbenchError


def linked(path, secret):
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink(str(secret), "/secret")


def linked_in_a_group(path, secret):
    with h5py.File(path, "w") as file:
        file.create_group("a/b")["x"] = h5py.ExternalLink(os.path.relpath(secret, path.parent), "/secret")
        file["y"] = h5py.SoftLink("/a/b/x")


def raw(path, secret):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (4,), "u1", external=[(str(secret), 0, 4)])


def virtual(path, secret):
    layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(secret), "secret", shape=(3,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)


def by_way_of_a_neighbour(path, secret):
    linked(path.with_name("neighbour.nc"), secret)
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("neighbour.nc", "/x")


@pytest.mark.parametrize("write", [linked, linked_in_a_group, raw, virtual, by_way_of_a_neighbour])
def test_files_outside_of_the_folder_are_not_read(tmp_path, write):
    secret, folder = tmp_path / "secret.nc", tmp_path / "results"
    folder.mkdir()
    with h5py.File(secret, "w") as file:
        file["secret"] = np.arange(3.0)
    write(folder / "r.nc", secret)
    with pytest.raises(WorkbenchError, match=r"reads from .*secret\.nc', which is not in its own folder"):
        results.load(folder / "r.nc")


def test_a_neighbour_that_is_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "r.nc", "w") as file:
        file["x"] = h5py.ExternalLink("pipe", "/x")
    with pytest.raises(WorkbenchError, match="it is a device or a pipe"):
        results.load(tmp_path / "r.nc")


def test_an_array_that_holds_nothing_of_what_it_promises_is_refused(tmp_path):
    with h5py.File(tmp_path / "r.nc", "w") as file:
        file.create_dataset("x", (10**7, 10**6), "f8", chunks=(1000, 1000))
    with pytest.raises(WorkbenchError, match="promises arrays of 74506 GiB"):
        results.load(tmp_path / "r.nc")


def test_groups_within_each_other_end(tmp_path):
    result = results.effect_array(np.ones(3), ("pos",), name="x")
    path = results.save(result, tmp_path / "r.nc")
    with h5py.File(path, "r+") as file:
        group = file.create_group("a")
        group["itself"], group["root"] = group, file["/"]
    assert results.load(path).identical(result)


def test_text_that_is_not_ours_is_refused_by_name(tmp_path):
    with h5py.File(tmp_path / "r.nc", "w") as file:
        file.attrs["title"] = "ends in \\"
    with pytest.raises(WorkbenchError, match="cannot be read as a netCDF result"):
        results.load(tmp_path / "r.nc")
