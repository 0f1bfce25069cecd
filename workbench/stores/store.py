"""Activations that were computed once and are read by everything else.

A store holds, per site, the activations of every prompt packed without padding: rows are tokens. `store["z",
3]` is a `SiteView` with readers by prompt, by (prompt, position), by named position, by column and in
shuffled blocks, the same in memory and on disk. Read `ActivationStore`. It never runs a model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from workbench.arguments import checked
from workbench.errors import StoreError
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Position, kind_named
from workbench.stores.index import Packed, RowIndex
from workbench.stores.plan import name_of
from workbench.text import spelled

BLOCK = 4096


@dataclass(frozen=True, eq=False)
class SiteView:
    """The activations of one site of every prompt in a store.

    Attributes:
        kind, layer: which site.
        data: [row, ...]: the tokens of all prompts one after the other. For `pattern` a flat vector per
            prompt, [head * query_pos * key_pos], one after the other.
        index: where the rows of each prompt lie in `data`.
    """

    kind: str
    layer: int | None
    data: Packed
    index: RowIndex
    store: "ActivationStore"

    @property
    def prompts(self) -> Prompts:
        """The prompts of the store."""
        return self.store.prompts

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the rows are kept."""
        return self.data.dtype

    @property
    def packed(self) -> Tensor:
        """[row, ...] of everything; from disk all of it is read."""
        return self.data.whole()

    @property
    def row_prompts(self) -> Int[Tensor, "row"]:
        """The prompt of every row."""
        self._no_pattern("row_prompts")
        return self.index.prompts

    @property
    def row_positions(self) -> Int[Tensor, "row"]:
        """The token position of every row; -1 for the mean over a prompt."""
        self._no_pattern("row_positions")
        return self.index.positions

    def prompt(self, i: int) -> Tensor:
        """[pos, ...] of one prompt (the positions kept); [head, query_pos, key_pos] for `pattern`."""
        start, count = int(self.index.starts[i]), int(self.index.counts[i])
        rows = self.data.part(start, start + count)
        if self.kind != "pattern":
            return rows
        # Patterns differ in size and lie flat: [head * query_pos * key_pos] → [head, query_pos, key_pos].
        length = int(self.store.index.counts[i])
        return rows.view(-1, length, length)

    def rows(self, *, prompt: Iterable[int] | Tensor, pos: Iterable[int] | Tensor) -> Tensor:
        """[row, ...] at these (prompt, position) pairs."""
        self._no_pattern("rows")
        examples, positions = _indices(prompt), _indices(pos)
        if len(examples) != len(positions):
            raise StoreError(
                f"{self!r}: {len(examples)} prompts and {len(positions)} positions: "
                "rows are named by pairs of them."
            )
        if bool(((examples < 0) | (examples >= len(self.store))).any()):
            raise StoreError(f"{self!r}: a prompt lies outside the store's {len(self.store)}.")
        rows = self.index.find(examples, positions)
        if bool((rows < 0).any()):
            i = int((rows < 0).nonzero()[0])
            reason = "it lies outside its prompt"
            if self.index.kept is not None:
                reason += f", or is not among those kept ({self.store.keep})"
            raise StoreError(
                f"{self!r}: position {int(positions[i])} of prompt {int(examples[i])} is not there: {reason}."
            )
        return self.data.take(rows)

    def at(self, where: Position) -> Tensor:
        """[example, ...] at an index or named position of every prompt; NaN rows where a prompt lacks it."""
        self._no_pattern("at")
        positions = self.prompts.at(where).cpu()
        has = positions >= 0
        rows = self.index.find(torch.arange(len(positions)), positions.clamp(min=0))
        if bool((has & (rows < 0)).any()):
            raise StoreError(f"{self!r}: position {where!r} was not kept; the store keeps {self.store.keep}.")
        # A copy: `take` may give a view of the store, which must not get the NaN.
        table = self.data.take(rows.clamp(min=0)).clone()
        table[~has] = float("nan")
        return table

    def columns(self, columns: Iterable[int]) -> Tensor:
        """[row, column]: some neurons or directions of every row."""
        self._no_pattern("columns")
        return self.data.columns(columns)

    def blocks(self, *, shuffle: bool = False, seed: int = 0, size: int = BLOCK) -> Iterator[Tensor]:
        """Rows in blocks of up to `size`, each row once; `shuffle` permutes blocks, and the rows of each."""
        self._no_pattern("blocks")
        for _, block in self.data.blocks(size=size, shuffle=shuffle, seed=seed):
            yield block

    def dataset(self, *, shuffle: bool = False, seed: int = 0, size: int = BLOCK) -> "RowBlocks":
        """The blocks as a torch `IterableDataset`, for `DataLoader(..., batch_size=None, num_workers=4)`."""
        self._no_pattern("dataset")
        return RowBlocks(self.data, size, shuffle, seed)

    def padded(self, examples: Iterable[int] | None = None, length: int | None = None) -> Tensor:
        """[example, pos, ...] with zeros beyond each prompt's end.

        For `pattern` [example, head, query_pos, key_pos].

        Args:
            examples: which prompts; None: all.
            length: of the position axis; None: of the longest of them.

        Raises:
            StoreError: the store holds some positions only, or means.
        """
        # Without the whole sequence, the index of a row along `pos` would not be its token position.
        if self.index.kept is not None:
            raise StoreError(f"{self!r} holds {self.store.keep} of each prompt and not its whole sequence.")
        if examples is None:
            examples = range(len(self.store))
        chosen = list(examples)
        length = length or int(self.store.index.counts[chosen].max())
        first = self.prompt(chosen[0])
        shape = (length, *first.shape[1:])
        if self.kind == "pattern":
            shape = (len(first), length, length)
        table = first.new_zeros((len(chosen), *shape))
        for row, i in enumerate(chosen):
            values = self.prompt(i)
            if self.kind == "pattern":
                table[row, :, : values.shape[1], : values.shape[2]] = values
            else:
                table[row, : len(values)] = values
        return table

    def mean(self) -> Tensor:
        """[...]: the mean over all rows but BOS ones, summed in double precision."""
        self._no_pattern("mean")
        if self.store.keep == "mean":
            raise StoreError(
                f"{self!r} holds means over prompts: the mean over rows is not in it. "
                "Capture with keep='all'."
            )
        # In float32 the sum over millions of rows would lose digits.
        total, n = torch.zeros(self.data.row_shape, dtype=torch.float64), 0
        for rows, block in self.data.blocks(size=BLOCK, shuffle=False, seed=0):
            if self.prompts.bos:
                block = block[(self.index.positions[rows] != 0).to(block.device)]
            total, n = total + block.sum(0, dtype=torch.float64).cpu(), n + len(block)
        if not n:
            raise StoreError(f"{self!r}: there are no rows but BOS ones to take a mean of.")
        # Rows may be of half precision; their mean need not be rounded to it once more.
        return (total / n).to(torch.promote_types(self.dtype, torch.float32))

    def _no_pattern(self, reader: str) -> None:
        if self.kind == "pattern":
            raise StoreError(
                f"Attention patterns have no token rows for .{reader}(...): use .prompt(i) or .padded()."
            )

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        # For patterns `len(self.data)` counts numbers, because their rows have no common shape.
        shape = (len(self.data), *self.data.row_shape)
        return (
            f"<SiteView {name_of((self.kind, self.layer))}: {len(self.store)} prompts, {shape} {self.dtype}>"
        )


def _indices(numbers: Iterable[int] | Tensor) -> Int[Tensor, "row"]:
    # torch makes tensors of sequences and not of iterators.
    if not isinstance(numbers, Tensor):
        numbers = torch.as_tensor(list(numbers))
    return numbers.cpu().long()


class RowBlocks(IterableDataset[Tensor]):
    """Blocks of rows for a `DataLoader`; its workers share the blocks, so that each row comes once."""

    def __init__(self, data: Packed, size: int, shuffle: bool, seed: int) -> None:
        self._data, self._size, self._shuffle, self._seed = data, size, shuffle, seed

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        # Every worker of a `DataLoader` comes here, so each takes a share of the
        # blocks: (its number, of how many).
        share = (0, 1) if worker is None else (worker.id, worker.num_workers)
        blocks = self._data.blocks(size=self._size, shuffle=self._shuffle, seed=self._seed, share=share)
        for _, block in blocks:
            # The memory of a mapped file cannot be sent to another process.
            yield block if worker is None else block.clone()


@checked
class ActivationStore:
    """Activations of a set of prompts in one model.

    Filled by `capture`, then only read; `open_store` reads one from disk.

    Attributes:
        index: which rows belong to which prompt.
        keep: which positions of a prompt have rows: "all", "mean" over each prompt, or some positions.
        model, model_name, tokenizer: fingerprint, name and vocabulary fingerprint of where the activations
            come from.
        path: where it lies on disk; None for one in memory.
    """

    def __init__(
        self,
        prompts: Prompts | Callable[[], Prompts],
        data: Mapping[Key, Packed],
        *,
        index: RowIndex,
        model: str,
        model_name: str,
        tokenizer: str,
        keep: str = "all",
        path: str | None = None,
    ) -> None:
        self._prompts, self._data, self.index = prompts, dict(data), index
        self.model, self.model_name, self.tokenizer = model, model_name, tokenizer
        self.keep, self.path = keep, path

    @classmethod
    @checked
    def of(
        cls, prompts: Prompts, tensors: Mapping[Key, Tensor], *, model: str, model_name: str, tokenizer: str
    ) -> "ActivationStore":
        """A store in memory of [row, ...] tensors by (kind, layer).

        Rows are the tokens of all prompts one after the other.
        """
        # resid_post of a layer is resid_pre of the next: one tensor under two names stays one.
        packed = {id(rows): Packed.of(rows) for rows in tensors.values()}
        data = {key: packed[id(rows)] for key, rows in tensors.items()}
        return cls(
            prompts,
            data,
            index=RowIndex.of(prompts.lengths),
            model=model,
            model_name=model_name,
            tokenizer=tokenizer,
        )

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts, with named positions and token strings."""
        # A store on disk reads its prompts when they are asked for.
        if isinstance(self._prompts, Prompts):
            return self._prompts
        return self._prompts()

    @cached_property
    def _examples(self) -> dict[str, int]:
        # Backwards, so that of equal prompts the first is kept.
        return {prompt_id: i for i, prompt_id in reversed(list(enumerate(self.prompts.ids)))}

    @property
    def keys(self) -> list[Key]:
        """The (kind, layer) of everything in the store."""
        return list(self._data)

    @property
    def kinds(self) -> list[str]:
        """The kinds in the store."""
        return list(dict.fromkeys(kind for kind, _ in self._data))

    def layers(self, kind: str) -> list[int]:
        """The layers of a kind that are in the store."""
        return sorted(layer for name, layer in self._data if name == kind and layer is not None)

    def example(self, prompt_id: str) -> int | None:
        """The index of the prompt with that id, or None."""
        return self._examples.get(prompt_id)

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes of every result that is computed from the store: which model, which prompts."""
        return {
            "model": self.model_name,
            "model_fingerprint": self.model,
            "data_fingerprint": self.prompts.fingerprint,
        }

    def nbytes(self) -> int:
        """Bytes held, in memory or on disk; sites that share their activations count once."""
        sizes = {
            id(data): len(data) * data.dtype.itemsize * torch.Size(data.row_shape).numel()
            for data in self._data.values()
        }
        return sum(sizes.values())

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.index.starts)

    def __contains__(self, key: Key) -> bool:
        return key in self._data

    def __getitem__(self, key: Key | str) -> SiteView:
        if isinstance(key, str):
            key = (key, None)
        kind, layer = key
        kind_named(kind)
        if KINDS[kind].per_layer and layer is None:
            raise StoreError(
                f"Which layer of {kind}? Write store[{kind!r}, 0]; the store has layers {self.layers(kind)}."
            )
        if (kind, layer) not in self._data:
            contents = f"it has {', '.join(self.kinds)}"
            if kind in self.kinds:
                contents = f"it has layers {self.layers(kind)} of it"
            raise StoreError(
                f"The store does not hold {name_of((kind, layer))}; {contents}. "
                f"Capture it with sites=[..., {kind!r}]."
            )
        data = self._data[kind, layer]
        index = self.index
        if kind == "pattern":
            index = self._squares(len(data))
        return SiteView(kind, layer, data, index, self)

    def _squares(self, numbers: int) -> RowIndex:
        """The index of attention patterns; `numbers` of them in all tell how many heads were kept."""
        return self.index.squares(numbers // max(int((self.index.counts**2).sum()), 1))

    def __repr__(self) -> str:
        folder = ""
        if self.path is not None:
            folder = f" in {self.path!r}"
        contents = f"{', '.join(self.kinds)}, {self.nbytes() / 2**20:.1f} MiB"
        return f"<ActivationStore of {spelled(self.model_name)}{folder}: {len(self)} prompts, {contents}>"
