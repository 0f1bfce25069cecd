"""The inputs of `panels`, checked and in one form: arrays, token strings, heads, activations.

Every function raises an error that says what was given and what is needed. Nothing here draws.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.errors import SiteError, StoreError, WorkbenchError
from workbench.models.model import Model
from workbench.prompts.encoder import token_labels
from workbench.sites import Node
from workbench.stores.store import ActivationStore
from workbench.text import visible

Decode = Model | Callable[[int], str] | Sequence[str] | Mapping[int, str]
"""From a token id to its string: a model, a function such as `tokenizer.decode`, or all strings."""


@dataclass(frozen=True)
class NeuronActivations:
    """Activations of neurons on prompts.

    Attributes:
        prompts: the token strings of each prompt.
        tables: [pos, layer, neuron] of each prompt.
        layers, neurons: their labels.
    """

    prompts: list[list[str]]
    tables: list[np.ndarray]
    layers: list[str]
    neurons: list[str]


def as_array(values: Any, what: str) -> np.ndarray:
    """The values as one array of float64; `what` names them in an error."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()  # numpy has no bfloat16
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"{what} cannot be read as one array of numbers: {error}.") from error


def as_finite(values: Any, what: str) -> np.ndarray:
    """`as_array`, which has to be finite everywhere."""
    numbers = as_array(values, what)
    if not np.isfinite(numbers).all():
        raise WorkbenchError(f"{what} are not all finite: leave out the positions that were not measured.")
    return numbers


def as_strings(strings: Sequence[str]) -> list[str]:
    """A list of token strings, at least one."""
    # a string is a sequence of strings too: its characters would pass for tokens
    if isinstance(strings, str) or not len(strings) or not all(isinstance(text, str) for text in strings):
        raise WorkbenchError(
            f"{strings!r:.60} is not a list of token strings: one string for each token is needed."
        )
    return list(map(str, strings))


def as_decoder(decode: Decode) -> Callable[[int], str]:
    """A function from a token id to its string."""
    # before callable(): a model can be called too
    if isinstance(decode, Model):
        return lambda token: token_labels(decode, [token])[0]
    if callable(decode):
        return lambda token: str(decode(token))

    def word(token: int) -> str:
        """The string that a list or mapping has for a token."""
        try:
            return str(decode[token])
        except (LookupError, TypeError) as error:
            raise WorkbenchError(
                f"decode has no string for token {token}; it has {len(decode)} of them."
            ) from error

    return word


def example_of(store: ActivationStore, prompt: int | str) -> int:
    """The index of a prompt in a store, from its index or id."""
    example = store.example(prompt) if isinstance(prompt, str) else int(prompt)
    if example is None or example not in range(len(store)):
        raise StoreError(
            f"There is no prompt {prompt!r} in {store!r}: name one by its id, or by 0 to {len(store) - 1}."
        )
    return example


def as_head(head: str | tuple[int, int] | int, layer: int | None) -> tuple[int, int]:
    """(layer, head) of a name, a pair, or with `layer` a number."""
    if isinstance(head, str):
        node = Node.parse(head)
        if node.is_head and not node.port:
            return node.layer_and_head
    elif isinstance(head, int | np.integer):
        if layer is not None:
            return layer, int(head)
    elif isinstance(head, Sequence) and len(head) == 2:
        return int(head[0]), int(head[1])
    raise SiteError(f"{head!r} is not a head. Heads: 'a3.4', (3, 4), or with layer=3 the number 4.")


def as_activations(
    strings: Sequence[str] | Sequence[Sequence[str]],
    activations: Any,
    layers: Sequence[object] | None,
    names: Sequence[object] | None,
) -> NeuronActivations:
    """One prompt with its [pos, layer, neuron] array, or several with an array each."""
    if len(strings) > 0 and isinstance(strings[0], str):
        strings, activations = [strings], [activations]  # pyright: ignore[reportAssignmentType]
    prompts = list(map(as_strings, strings))
    tables = [as_finite(table, "The activations") for table in activations]
    if not prompts or len(prompts) != len(tables):
        raise WorkbenchError(
            f"{len(prompts)} prompts and {len(tables)} arrays of activations: one for each prompt is needed."
        )
    n_layers_and_neurons = tables[0].shape[1:]
    for row, table in zip(prompts, tables, strict=True):
        fits = table.ndim == 3 and len(table) == len(row) and table.shape[1:] == n_layers_and_neurons
        if not fits or not table.size:
            raise WorkbenchError(
                f"Activations of shape {table.shape} do not fit {len(row)} tokens: [pos, layer, neuron] = "
                f"({len(row)}, ...) is needed, with as many layers and neurons for every prompt."
            )
    n_layers, n_neurons = n_layers_and_neurons
    return NeuronActivations(
        prompts, tables, as_names("layers", layers, n_layers), as_names("names", names, n_neurons)
    )


def as_names(argument: str, names: Sequence[object] | None, size: int, prefix: str = "") -> list[str]:
    """The names along an axis as text, by default its indices with a prefix."""
    if names is None:
        return [f"{prefix}{i}" for i in range(size)]
    texts = list(map(str, names))
    if len(texts) != size:
        raise WorkbenchError(f"{argument} has {len(texts)} names for {size} of them: one for each is needed.")
    return texts


def quoted(string: str) -> str:
    """A token as it is written in a title: without the spaces around it, in quotation marks."""
    return f'"{visible(string.strip() or string)}"'
