"""What a store on disk will hold, decided before anything is run: its shards, batches and files.

Read `StorePlan`. Nothing in a plan depends on who does the work, so that one process, several processes, and
one that resumes write the same bytes. A plan knows nothing of models: it holds fingerprints, names and
shapes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from workbench.checksums import KEY, content_sum, is_unchanged
from workbench.errors import StoreError
from workbench.sites import KINDS, Key
from workbench.stores.index import RowIndex

FORMAT = "workbench-store"
VERSION = 1
SHARD_BYTES = 2**27
MOST, MOST_THREADS = 2**40, 4096
"""Bounds of the numbers in a plan: of any size (prompts, rows, tokens), and of threads."""
PLAN, PROMPTS, LABELS, SHARDS = "store.json", "prompts.safetensors", "labels.json", "shards"


@dataclass(frozen=True)
class StorePlan:
    """A store on disk.

    Attributes:
        model, model_name, tokenizer, prompts: what the activations were computed from: fingerprints, and the
            model's name.
        n: how many prompts.
        sites: every site → the site under whose name its rows are written; two names of one activation share
            them.
        shapes: written site → the shape of one row; for patterns (heads,).
        dtype: of the rows.
        keep: "all", "mean", or positions; `rows` when they were given prompt by prompt.
        shards: the first prompt of each, and the one after its last.
        batch_tokens: how many tokens, padding counted, one forward pass gets at most.
        threads: processor threads of every forward pass. With another number of them sums run in another
            order and are rounded differently, so a resumed store would not get the same bytes.
        versions: of the libraries.
        checksums: of the files that all shards need.
    """

    model: str
    model_name: str
    tokenizer: str
    prompts: str
    n: int
    sites: Mapping[str, str]
    shapes: Mapping[str, Sequence[int]]
    dtype: str
    keep: str
    shards: Sequence[Sequence[int]]
    batch_tokens: int
    threads: int
    versions: Mapping[str, str]
    checksums: Mapping[str, str]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return getattr(torch, self.dtype)

    @property
    def groups(self) -> dict[str, list[str]]:
        """Kind → its written sites: each kind has a file of its own in a shard."""
        groups: dict[str, list[str]] = {}
        for name in self.shapes:
            groups.setdefault(key_of(name)[0], []).append(name)
        return groups

    def tensors(
        self, group: str, shard: int, lengths: np.ndarray, counts: np.ndarray
    ) -> dict[str, tuple[torch.dtype, list[int]]]:
        """The tensors of one file: dtype and shape by site."""
        start, stop = self.shards[shard]
        rows, squares = int(counts[start:stop].sum()), int((lengths[start:stop] ** 2).sum())
        shaped = {name: [rows, *self.shapes[name]] for name in self.groups[group]}
        if group == "pattern":
            # A pattern is a square per head, as large as its prompt: its file is one flat row of numbers.
            shaped = {name: [squares * int(self.shapes[name][0])] for name in self.groups[group]}
        return {name: (self.torch_dtype, shape) for name, shape in shaped.items()}

    def order(self, lengths: np.ndarray) -> np.ndarray:
        """[example]: the prompts in the order in which they are written: by length within each shard."""
        shard = np.repeat(np.arange(len(self.shards)), [stop - start for start, stop in self.shards])
        return np.lexsort((np.arange(self.n), lengths, shard))

    def index(self, lengths: np.ndarray, counts: np.ndarray, kept: torch.Tensor | None) -> RowIndex:
        """Where the rows of each prompt lie; `kept` are the positions of all rows, prompt after prompt."""
        order = torch.from_numpy(self.order(lengths))
        if kept is not None:
            # Rows lie in the order in which prompts were run: the positions are brought into that order.
            first = RowIndex.of(torch.from_numpy(counts))
            spans = [
                kept[int(first.starts[i]) : int(first.starts[i] + first.counts[i])] for i in order.tolist()
            ]
            if spans:
                kept = torch.cat(spans).long()
        return RowIndex.of(torch.from_numpy(counts), order=order, kept=kept)

    def batches(self, shard: int, lengths: np.ndarray) -> Iterator[list[int]]:
        """The prompts of each forward pass of a shard.

        They are of similar length: with padding, a batch has no more than `batch_tokens` tokens.
        """
        start, stop = self.shards[shard]
        # Sorted by length, so that little is padding; the index breaks ties, so that the order is fixed.
        batch: list[int] = []
        for i in sorted(range(start, stop), key=lambda i: (lengths[i], i)):
            if batch and (len(batch) + 1) * lengths[i] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def same_store(self, other: "StorePlan") -> list[str]:
        """The fields in which two plans differ about what they store; shards and batches do not count."""
        fields = ("model", "tokenizer", "prompts", "sites", "shapes", "dtype", "keep")
        return [name for name in fields if getattr(self, name) != getattr(other, name)]

    def to_dict(self) -> dict[str, Any]:
        """The content of `store.json`, with a checksum of itself."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return {**content, KEY: content_sum(content)}

    @classmethod
    def from_dict(cls, content: Any, place: str) -> "StorePlan":
        """A plan from JSON. Raises `StoreError` for anything else, or a later version."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StoreError(f"{place!r} is not the plan of a store.")
        if content.get("version") != VERSION:
            raise StoreError(
                f"{place!r} has version {content.get('version')!r}; this workbench reads version {VERSION}."
            )
        # Every plan is signed: one whose checksum was taken out is refused like one that was changed.
        if KEY not in content or not is_unchanged(content):
            raise StoreError(
                f"{place!r} was changed since it was written (checksum). "
                "Capture the prompts into a fresh folder."
            )
        try:
            plan = cls(**{name: content[name] for name in cls.__dataclass_fields__})
            plan._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"{place!r} is damaged: {error}. Capture the prompts into a fresh folder."
            ) from error
        return plan

    def _check(self) -> None:
        """Raise `ValueError` where the parts of a plan that was read do not fit together."""
        sizes = [self.n, self.batch_tokens, self.threads, *chain(*self.shards), *chain(*self.shapes.values())]
        if not all(type(size) is int and 0 <= size < MOST for size in sizes):
            raise ValueError(f"a size in it is not a whole number from 0 to {MOST}")
        if self.threads > MOST_THREADS:
            raise ValueError(f"no machine has {self.threads} threads")
        starts, stops = [start for start, _ in self.shards], [stop for _, stop in self.shards]
        # A plan may be damaged: each shard has to begin where the one before ends, the first at 0, and the
        # last has to end at n.
        if (
            [0, *stops] != [*starts, self.n]
            or any(stop < start for start, stop in self.shards)
            or len(self.shards) > max(1, self.n)
            or not isinstance(self.torch_dtype, torch.dtype)
            or not set(self.sites.values()) <= set(self.shapes)
        ):
            raise ValueError("its shards, sites and shapes do not fit together")
        # A plan must not make a reader open files outside its folder.
        if not set(self.checksums) <= {PROMPTS, LABELS}:
            raise ValueError(f"it names other files than {PROMPTS} and {LABELS}")
        unknown = {key_of(name)[0] for name in (*self.sites, *self.shapes)} - set(KINDS)
        if unknown:
            raise ValueError(f"{min(unknown)!r} is no kind of site")


def cut(
    lengths: np.ndarray, counts: np.ndarray, widths: Mapping[str, int], heads: int, itemsize: int, most: int
) -> list[list[int]]:
    """Shards of consecutive prompts, at least one each, whose largest file has at most `most` bytes.

    Args:
        widths: numbers per row of each kind, all layers together.
        heads: of attention patterns, all layers together.
    """
    widest = max((width for kind, width in widths.items() if kind != "pattern"), default=0)
    # Each kind has a file of its own. The largest is that of the widest kind, or of the patterns, which grow
    # with the squared length.
    sizes = np.maximum(counts * widest, lengths**2 * heads) * itemsize
    shards, start, total = [], 0, 0
    for i, size in enumerate(sizes.tolist()):
        if total and total + size > most:
            shards.append([start, i])
            start, total = i, 0
        total += size
    return [*shards, [start, len(sizes)]]


def name_of(key: Key) -> str:
    """A site's name, as in `resid_post[3]`."""
    kind, layer = key
    if layer is None:
        return kind
    return f"{kind}[{layer}]"


def key_of(name: str) -> Key:
    """The (kind, layer) of a site's name. Raises `ValueError` for anything else."""
    match = re.fullmatch(r"(\w+?)(?:\[(\d+)\])?", name)
    if match is None:
        raise ValueError(f"{name!r} is not a site")
    return match[1], None if match[2] is None else int(match[2])


def join(place: str, name: str) -> str:
    """The path or URL of a file of the store."""
    return f"{place.rstrip('/')}/{name}"


def file_name(shard: int, group: str) -> str:
    """The path, within the store, of a shard's file of one kind."""
    return f"{SHARDS}/{shard:05d}.{group}.safetensors"


def record_name(shard: int) -> str:
    """The path, within the store, of the record that a shard is whole, with the checksums of its files."""
    return f"{SHARDS}/{shard:05d}.json"
