"""Activations that were computed once and are read by everything else.

A store holds, per site, the activations of every prompt packed without padding: rows are tokens. `store["z", 3]` is a
view with readers by prompt, by (prompt, position), by named position and in shuffled blocks. It never runs a model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.errors import StoreError
from workbench.sites import KINDS, Key, Position, kind_named
from workbench.tasks.pairs import Prompts


@dataclass(frozen=True, eq=False)
class SiteView:
    """The activations of one site of every prompt in a store.

    Attributes:
        kind, layer: which site.
        packed: [row, ...]: the tokens of all prompts one after the other. For `pattern` a flat vector per prompt,
            [head * query_pos * key_pos], one after the other.
        offsets: [example + 1]: where each prompt begins in `packed`.
    """

    kind: str
    layer: int | None
    packed: Tensor
    offsets: Tensor
    prompts: Prompts

    def prompt(self, i: int) -> Tensor:
        """[pos, ...] of one prompt; [head, query_pos, key_pos] for `pattern`."""
        rows = self.packed[int(self.offsets[i]) : int(self.offsets[i + 1])]
        if self.kind != "pattern":
            return rows
        length = int(self.prompts.lengths[i])
        return rows.view(-1, length, length)

    def rows(self, *, prompt: Iterable[int], pos: Iterable[int]) -> Tensor:
        """[row, ...] at these (prompt, position) pairs."""
        self._no_pattern("rows")
        chosen, places = torch.as_tensor(list(prompt)), torch.as_tensor(list(pos))
        if bool((places < 0).any()) or bool((places >= self.prompts.lengths[chosen]).any()):
            raise StoreError(f"{self!r}: a position lies outside its prompt.")
        return self.packed[(self.offsets[chosen] + places).to(self.packed.device)]

    def at(self, where: Position) -> Tensor:
        """[example, ...] at one index or named position of every prompt that has it; NaN rows for the others."""
        self._no_pattern("at")
        places = self.prompts.at(where)
        has = places >= 0
        found = self.packed[(self.offsets[:-1] + places.clamp(min=0)).to(self.packed.device)].clone()
        found[~has] = float("nan")
        return found

    def blocks(self, *, shuffle: bool = False, seed: int = 0, size: int = 4096) -> Iterator[Tensor]:
        """Rows in blocks of up to `size`; shuffled blocks are permuted and mixed within, each row comes once."""
        self._no_pattern("blocks")
        starts = np.arange(0, len(self.packed), size)
        rng = np.random.default_rng(seed)
        for start in rng.permutation(starts) if shuffle else starts:
            block = self.packed[start : start + size]
            yield block[torch.from_numpy(rng.permutation(len(block)))] if shuffle else block

    def padded(self, examples: Iterable[int] | None = None, length: int | None = None) -> Tensor:
        """[example, pos, ...] (`pattern`: [example, head, query_pos, key_pos]) with zeros beyond each prompt's end."""
        chosen = list(range(len(self.prompts)) if examples is None else examples)
        length = length or int(self.prompts.lengths[chosen].max())
        first = self.prompt(chosen[0])
        shape = (len(first), length, length) if self.kind == "pattern" else (length, *first.shape[1:])
        table = first.new_zeros((len(chosen), *shape))
        for row, i in enumerate(chosen):
            values = self.prompt(i)
            if self.kind == "pattern":
                table[row, :, : values.shape[1], : values.shape[2]] = values
            else:
                table[row, : len(values)] = values
        return table

    def mean(self) -> Tensor:
        """[...]: the mean over all rows but BOS ones."""
        self._no_pattern("mean")
        if not self.prompts.bos:
            return self.packed.mean(0)
        kept = torch.ones(len(self.packed), dtype=torch.bool)
        kept[self.offsets[:-1]] = False
        if not bool(kept.any()):
            raise StoreError(f"{self!r}: there are no rows but BOS ones to take a mean of.")
        return self.packed[kept.to(self.packed.device)].mean(0)

    def _no_pattern(self, what: str) -> None:
        if self.kind == "pattern":
            raise StoreError(f"Attention patterns have no token rows for .{what}(...): use .prompt(i) or .padded().")

    def __len__(self) -> int:
        return len(self.packed)

    def __repr__(self) -> str:
        site = self.kind if self.layer is None else f"{self.kind}[{self.layer}]"
        return f"<SiteView {site}: {len(self.prompts)} prompts, {tuple(self.packed.shape)} {self.packed.dtype}>"


class ActivationStore:
    """Activations of a set of prompts in one model. Filled by `capture`, then only read.

    Attributes:
        prompts: the prompts, with named positions and token strings.
        model, model_name, tokenizer: fingerprint, name and vocabulary fingerprint of where the activations come from.
    """

    def __init__(self, prompts: Prompts, data: Mapping[Key, Tensor], *, model: str, model_name: str, tokenizer: str) -> None:
        self.prompts, self.model, self.model_name, self.tokenizer = prompts, model, model_name, tokenizer
        self._data = dict(data)
        self._offsets = torch.cat([torch.zeros(1, dtype=torch.long), prompts.lengths.cpu().cumsum(0)])
        self._examples = {prompt_id: i for i, prompt_id in reversed(list(enumerate(prompts.ids)))}

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

    def nbytes(self) -> int:
        """Bytes held; sites that share their activations count once."""
        return sum({value.data_ptr(): value.numel() * value.element_size() for value in self._data.values()}.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._data

    def __getitem__(self, key: Key | str) -> SiteView:
        kind, layer = (key, None) if isinstance(key, str) else key
        kind_named(kind)
        if KINDS[kind].per_layer and layer is None:
            raise StoreError(f"Which layer of {kind}? Write store[{kind!r}, 0]; the store has layers {self.layers(kind)}.")
        if (kind, layer) not in self._data:
            here = f"it has layers {self.layers(kind)} of it" if kind in self.kinds else f"it has {', '.join(self.kinds)}"
            raise StoreError(
                f"The store does not hold {kind}" + ("" if layer is None else f"[{layer}]") + f"; {here}. "
                f"Capture it with sites=[..., {kind!r}]."
            )
        offsets = self._offsets
        if kind == "pattern":
            squares = self.prompts.lengths.cpu() ** 2
            heads = len(self._data[kind, layer]) // max(int(squares.sum()), 1)
            offsets = torch.cat([torch.zeros(1, dtype=torch.long), (squares * heads).cumsum(0)])
        return SiteView(kind, layer, self._data[kind, layer], offsets, self.prompts)

    def __repr__(self) -> str:
        size = self.nbytes() / 2**20
        return f"<ActivationStore of {self.model_name}: {len(self.prompts)} prompts, {', '.join(self.kinds)}, {size:.1f} MiB>"
