"""The record of a finished shard: the checksum of each of its files, and of each tensor in them.

`write_record` and `read_record` are the way in and out; `StoreChecks` compares what is read with them. A
record is written last, so a shard without one is not whole, whatever files it has. Stores of earlier versions
have records of files alone.
"""

from pathlib import Path

import torch
import xxhash
from torch import Tensor

from workbench.checksums import KEY, file_sum, is_unchanged, signed
from workbench.errors import StoreError
from workbench.stores.format import memory_of
from workbench.stores.plan import StorePlan, file_name, join, record_name
from workbench.stores.reading import StoredFile, read_json, stored_sum
from workbench.stores.writing import write_json

CURE = "workbench store verify names what is damaged, workbench store repair recomputes it."


def write_record(folder: Path, plan: StorePlan, shard: int) -> None:
    """Write the record of a shard, all of whose files are written."""
    sums: dict[str, str] = {}
    for group, tensors in plan.groups.items():
        name = file_name(shard, group)
        sums[name] = file_sum(folder / name)
        file = StoredFile(str(folder / name))
        for tensor in tensors:
            sums[_tensor_key(name, tensor)] = tensor_sum(file.tensor(tensor))
    write_json(folder / record_name(shard), signed(sums))


def read_record(place: str, plan: StorePlan, shard: int) -> dict[str, str]:
    """The checksums of a shard's files by their names, and of their tensors by FILE#TENSOR.

    Raises:
        StoreError: there is none, it is damaged, or it lists other files than the plan.
    """
    record = read_json(join(place, record_name(shard)))
    if not isinstance(record, dict) or not is_unchanged(record):
        raise StoreError(f"{join(place, record_name(shard))!r} is damaged. {CURE}")
    sums = {name: text for name, text in record.items() if name != KEY}
    # A record must not make a reader open other files than those of its own shard.
    files = {name for name in sums if "#" not in name}
    if files != {file_name(shard, group) for group in plan.groups}:
        raise StoreError(f"{join(place, record_name(shard))!r} lists other files than the plan. {CURE}")
    return sums


def tensor_sum(tensor: Tensor) -> str:
    """xxh3_128 of the numbers of a tensor."""
    return xxhash.xxh3_128_hexdigest(memory_of(tensor.contiguous().flatten().view(torch.uint8)))


class StoreChecks:
    """Compares the parts of an opened store with their checksums, each part once.

    Args:
        place: the folder or URL of the store.
        wanted: False compares nothing.
    """

    def __init__(self, place: str, plan: StorePlan, *, wanted: bool = True) -> None:
        self.place, self.plan, self.wanted = place, plan, wanted
        self._sums: dict[int, dict[str, str]] = {}
        self._checked: set[str] = set()

    def check_common(self) -> None:
        """Raise `StoreError` where the prompts or the token strings are not as they were written."""
        for name, wanted in self.plan.checksums.items():
            if self._is_due(name) and stored_sum(join(self.place, name)) != wanted:
                self._refuse(name)

    def check_tensor(self, shard: int, group: str, name: str, tensor: Tensor) -> None:
        """Raise `StoreError` where a tensor of a shard is not as it was written."""
        file = file_name(shard, group)
        key = _tensor_key(file, name)
        if not self._is_due(key):
            return
        if shard not in self._sums:
            self._sums[shard] = read_record(self.place, self.plan, shard)
        sums = self._sums[shard]
        if key in sums:
            if tensor_sum(tensor) != sums[key]:
                self._refuse(file)
        # A record of an earlier version: the whole file is compared, once for all of its tensors.
        elif self._is_due(file) and stored_sum(join(self.place, file)) != sums[file]:
            self._refuse(file)

    def _is_due(self, name: str) -> bool:
        """Whether a part is still to be compared; from now on it counts as compared."""
        if not self.wanted or name in self._checked:
            return False
        self._checked.add(name)
        return True

    def _refuse(self, name: str) -> None:
        # It no longer counts as compared, so that it is refused again when it is read again.
        self._checked = {checked for checked in self._checked if checked.split("#")[0] != name}
        raise StoreError(
            f"{join(self.place, name)!r} is damaged: its bytes are not those that were written "
            f"(checksum). {CURE}"
        )


def _tensor_key(file: str, tensor: str) -> str:
    return f"{file}#{tensor}"
