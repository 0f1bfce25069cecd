"""A store on disk: opened lazily, checked, and the record of which shards are whole.

store.json            the plan: what is stored, and in which shards
prompts.safetensors   tokens, lengths and named positions, packed
labels.json           the token strings that occur
shards/00000.z.safetensors, ...   the rows of one kind in one shard
shards/00000.json     written last: this shard is whole, with the checksums of its files and their tensors

Begin with `open_store` and `verify`. No model is run: `engine/capture_to_disk.py` writes stores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.arguments import checked
from workbench.errors import StoreError
from workbench.prompts.prompts import Prompts
from workbench.stores.index import Packed
from workbench.stores.plan import LABELS, PLAN, PROMPTS, StorePlan, file_name, join, key_of, record_name
from workbench.stores.reading import StoredFile, filesystem, read_json, stored_sum
from workbench.stores.records import CURE, StoreChecks, read_record
from workbench.stores.store import ActivationStore
from workbench.stores.writing import write_json, writing

MOST_TOKENS = 2**33
"""Cells [example, pos] of the padded table of prompts: one long prompt among many makes it enormous."""


class OpenFiles(dict[str, StoredFile]):
    """The open files of a store, by path or URL. Another process opens them again."""

    def __missing__(self, path: str) -> StoredFile:
        self[path] = StoredFile(path)
        return self[path]

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[()]]:
        # Memory maps cannot be pickled: workers of a data loader get an empty table and open what they read.
        return OpenFiles, ()


class ShardSegment:
    """One tensor of one shard: its file is opened when a row is first asked for."""

    def __init__(
        self,
        files: OpenFiles,
        checks: StoreChecks,
        shard: int,
        name: str,
        planned: tuple[torch.dtype, list[int]],
    ) -> None:
        self._files, self._checks, self._shard, self.name = files, checks, shard, name
        self._dtype, self._shape = planned[0], tuple(planned[1])
        self._group = key_of(name)[0]
        self.path = join(checks.place, file_name(shard, self._group))

    def __len__(self) -> int:
        return self._shape[0]

    def whole(self, *, check: bool = False) -> Tensor:
        """[row, ...] of all rows: a view of the mapped file."""
        tensor = self._file.tensor(self.name)
        if check:
            self._checks.check_common()  # lengths and kept positions say whose rows these are
            self._checks.check_tensor(self._shard, self._group, self.name, tensor)
        return tensor

    def part(self, start: int, stop: int) -> Tensor:
        """[row, ...] of some consecutive rows."""
        return self._file.rows(self.name, start, stop)

    @property
    def _file(self) -> StoredFile:
        file = self._files[self.path]
        entry = file.entries.get(self.name)
        if entry is not None and (entry.dtype, entry.shape) != (self._dtype, self._shape):
            raise StoreError(
                f"{self.path!r} holds {self.name} as {entry.dtype} of shape {entry.shape}, and the plan says "
                f"{self._dtype} of shape {self._shape}. {CURE}"
            )
        return file


class DiskStore(ActivationStore):
    """A store whose rows and prompts lie on disk or behind a URL; see `open_store`."""

    def __init__(self, place: str, *, check: bool = True) -> None:
        self.plan = plan = read_plan(place)
        self._open, self._checks = OpenFiles(), StoreChecks(place, plan, wanted=check)
        self._prompts_file = StoredFile(join(place, PROMPTS))
        # Lengths decide where every row lies: read at once. Tokens are read when they are asked for.
        self._lengths = self._table("lengths").numpy().astype(np.int64)
        self._counts = self._table("counts").numpy().astype(np.int64)
        if len(self._lengths) != plan.n or len(self._counts) != plan.n:
            raise StoreError(
                f"{join(place, PROMPTS)!r} has {len(self._lengths)} prompts, and the plan {plan.n}. {CURE}"
            )
        kept = self._table("kept") if "kept" in self._prompts_file.entries else None
        self._check_sizes(place, kept)
        written = {name: self._packed(name) for name in plan.shapes}
        data = {key_of(name): written[own] for name, own in plan.sites.items()}
        super().__init__(
            lambda: self._read_prompts(place),
            data,
            index=plan.index(self._lengths, self._counts, kept),
            model=plan.model,
            model_name=plan.model_name,
            tokenizer=plan.tokenizer,
            keep=plan.keep,
            path=place,
        )

    def _check_sizes(self, place: str, kept: Tensor | None) -> None:
        """Raise `StoreError` where lengths and counts promise more than the file holds."""
        lengths, counts = self._lengths, self._counts
        n_rows = int(counts.sum())
        if (
            bool((lengths < 0).any() | (counts < 0).any() | (counts > np.maximum(lengths, 1)).any())
            or int(lengths.sum()) != self._prompts_file.entry("tokens").shape[0]
            or (kept is not None and len(kept) != n_rows)
        ):
            raise StoreError(f"{join(place, PROMPTS)!r} contradicts itself about its lengths. {CURE}")

    def _read_prompts(self, place: str) -> Prompts:
        self._checks.check_common()
        longest = int(self._lengths.max())
        if self.plan.n * longest > MOST_TOKENS:
            raise StoreError(
                f"{join(place, PROMPTS)!r}: {self.plan.n} prompts of up to {longest} tokens are too many for "
                f"one table; it may have {MOST_TOKENS} cells."
            )
        tokens, labels, bos = (self._table(name) for name in ("tokens", "labels", "bos"))
        words = read_json(join(place, LABELS))
        if (
            not isinstance(words, list)
            or not all(isinstance(word, str) for word in words)
            or bool(((labels < 0) | (labels >= len(words))).any())
        ):
            raise StoreError(f"{join(place, LABELS)!r} does not name the tokens of the store. {CURE}")
        ends = np.cumsum(self._lengths)
        spans = [(int(end - n), int(end)) for n, end in zip(self._lengths, ends, strict=True)]
        # The file has the tokens of all prompts in a row; [example, pos] needs padding on the right.
        table = torch.zeros((self.plan.n, longest), dtype=torch.long)
        is_token = torch.arange(table.shape[1]) < torch.from_numpy(self._lengths)[:, None]
        table[is_token] = tokens.long()
        strings = [words[i] for i in labels.tolist()]
        positions = {
            name.removeprefix("position "): self._table(name).long()
            for name in self._prompts_file.entries if name.startswith("position ")
        }  # fmt: skip
        prompts = Prompts(
            table,
            torch.from_numpy(self._lengths),
            positions,
            tuple(tuple(strings[a:b]) for a, b in spans),
            bool(bos[0]),
            self.plan.tokenizer,
        )
        if prompts.fingerprint != self.plan.prompts:
            raise StoreError(
                f"{join(place, PROMPTS)!r} does not hold the prompts that the store was planned for. {CURE}"
            )
        return prompts

    def _table(self, name: str) -> Tensor:
        return self._prompts_file.rows(name, 0, self._prompts_file.entry(name).shape[0])

    def _packed(self, name: str) -> Packed:
        plan, group = self.plan, key_of(name)[0]
        segments = []
        for shard in range(len(plan.shards)):
            planned = plan.tensors(group, shard, self._lengths, self._counts)[name]
            segments.append(ShardSegment(self._open, self._checks, shard, name, planned))
        return Packed(segments, dtype=plan.torch_dtype, shape=() if group == "pattern" else plan.shapes[name])


@checked
def open_store(place: str | Path, *, verify: bool | None = None) -> DiskStore:
    """A store on disk, or behind an fsspec URL such as `memory://runs/s1`.

    Rows are read when they are asked for.

    Args:
        verify: what is compared with its checksum. None: whatever is read as a whole (blocks, columns,
            `packed`, prompts), when it is first read, and never single rows. True: every file, now. False:
            nothing.

    Raises:
        StoreError: there is no store, it is not finished, or a file is damaged; the message names the file.

    >>> import tempfile, workbench as wb
    >>> model = wb.load_model("tiny")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = wb.capture(model, ["The dog near the cats is"], sites=["z"], path=f"{folder}/s")
    ...     tuple(wb.open_store(f"{folder}/s")["z", 3].prompt(0).shape)
    (7, 8, 16)
    """
    plan = read_plan(str(place))
    missing = [shard for shard in range(len(plan.shards)) if not exists(join(str(place), record_name(shard)))]
    if missing:
        raise StoreError(
            f"The store {str(place)!r} is not finished: "
            f"{len(missing)} of its {len(plan.shards)} shards are missing. "
            "Call capture with the same arguments again: it resumes where it stopped."
        )
    if verify and (damage := next(damages(str(place)), None)):
        raise StoreError(f"{damage.file!r} is damaged: {damage.why}. {CURE}")
    return DiskStore(str(place), check=verify is None)


def read_plan(place: str) -> StorePlan:
    """The plan of a store. Raises `StoreError` when there is none at that place."""
    if not exists(join(place, PLAN)):
        raise StoreError(
            f"There is no store in {place!r}: it has no {PLAN}. Make one with capture(..., path=)."
        )
    return StorePlan.from_dict(read_json(join(place, PLAN)), join(place, PLAN))


def exists(place: str) -> bool:
    """Whether there is a file or folder at that path or URL.

    Raises:
        StoreError: nobody can say, as in a folder of somebody else.
    """
    if "://" not in place:
        try:
            return Path(place).exists()
        except OSError as error:
            raise StoreError(f"{place!r} cannot be looked at: {error.strerror}.") from error
    files, path = filesystem(place)
    return bool(files.exists(path))


def write_prompts(folder: Path, prompts: Prompts, counts: np.ndarray, kept: Tensor | None) -> None:
    """Write the prompts of a store, packed without padding: `prompts.safetensors` and `labels.json`."""
    lengths = prompts.lengths.cpu()
    is_token = torch.arange(prompts.tokens.shape[1]) < lengths[:, None]
    words = list(dict.fromkeys(word for row in prompts.strings for word in row))
    number = {word: i for i, word in enumerate(words)}
    tensors = {
        "tokens": prompts.tokens.cpu()[is_token],
        "labels": torch.tensor([number[word] for row in prompts.strings for word in row]),
        "lengths": lengths, "counts": torch.from_numpy(counts), "bos": torch.tensor([int(prompts.bos)]),
        **{f"position {name}": positions.cpu() for name, positions in prompts.positions.items()},
        **({} if kept is None else {"kept": kept}),
    }  # fmt: skip
    write_json(folder / LABELS, words)
    # 32 bits hold every token id, and half the bytes.
    shapes = {name: (torch.int32, value.shape) for name, value in tensors.items()}
    with writing(folder / PROMPTS, shapes) as file:
        for name, value in tensors.items():
            file.append(name, value)


@dataclass(frozen=True)
class Damage:
    """A file that differs from what was written, and why. `shard` is None for a file that all shards need."""

    file: str
    why: str
    shard: int | None


def verify(folder: Path) -> Iterator[Damage]:
    """The files of a store that differ from what was written: missing, replaced or changed.

    Raises:
        StoreError: there is no readable plan.
    """
    return damages(str(folder))


def damages(place: str) -> Iterator[Damage]:
    """As `verify`, of a store that may lie behind a URL."""
    plan = read_plan(place)
    for name, wanted in plan.checksums.items():
        yield from _wrong(join(place, name), wanted, None)
    for shard in range(len(plan.shards)):
        try:
            sums = read_record(place, plan, shard)
        except StoreError as error:
            why = str(error).removesuffix(CURE).rstrip(" .")
            yield Damage(join(place, record_name(shard)), why, shard)
            continue
        for name, wanted in sums.items():
            if "#" not in name:
                yield from _wrong(join(place, name), wanted, shard)


def _wrong(place: str, wanted: str, shard: int | None) -> Iterator[Damage]:
    if "://" not in place and Path(place).is_dir():
        yield Damage(place, "a folder where a file was", shard)
    elif not exists(place):
        yield Damage(place, "missing", shard)
    elif stored_sum(place) != wanted:
        yield Damage(place, "its bytes are not those that were written (checksum)", shard)
