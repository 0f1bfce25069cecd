"""The cards of prompts, stores, labels, probes and sweeps; importing it makes `card_of` take them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.probes.fit import Probes
from workbench.probes.labels import Labels
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.render.cards.card import Card, Marked, card_of, picture_of
from workbench.render.cards.headlines import probe_rows, probes_headline
from workbench.render.cards.strongest import SHOWN
from workbench.stores.store import ActivationStore
from workbench.sweeps.strongest import strongest as strongest_rows
from workbench.sweeps.table import Sweep
from workbench.text import listed, visible

PAIRS = 3
"""Pairs that are shown."""


@card_of.register
def _pairs(pairs: PromptPairs) -> Card:
    """Three pairs, with the tokens marked in which the sides differ."""
    shortest, longest = int(pairs.clean.lengths.min()), int(pairs.clean.lengths.max())
    length = f"{shortest} tokens" if shortest == longest else f"{shortest} to {longest} tokens"
    task = visible(pairs.provenance.get("task", "own prompts"))
    told = f"{len(pairs)} pairs of {task}, {length} each; measured by {pairs.metric}."
    if len(pairs.counterfactuals) > 1:
        told += f" Counterfactuals: {listed(map(visible, pairs.counterfactuals))}."
    rows = pair_rows(pairs, PAIRS)
    lines: list[str] = []
    for i, row in enumerate(rows):
        lines.append(f"{i + 1}  clean    {row['clean']} → {row['answer']}, not {row['wrong']}")
        lines.append(f"   corrupt  {row['corrupt']}")
    return Card(told, pd.DataFrame(rows), more=len(pairs) - len(rows), lines=tuple(lines))


def pair_rows(pairs: PromptPairs, most: int) -> list[dict[str, Any]]:
    """The first pairs: clean and corrupt prompt with the tokens marked in which they differ, answer and wrong answer."""
    words, rows = _words(pairs.clean, pairs.corrupt) | dict(pairs.provenance.get("answer_words", {})), []
    for i in range(min(most, len(pairs))):
        row: dict[str, Any] = {
            "clean": _marked(pairs.clean, pairs.corrupt, i),
            "corrupt": _marked(pairs.corrupt, pairs.clean, i),
        }
        row["answer"], row["wrong"] = (
            _answers(table[i].tolist(), words) for table in (pairs.answers, pairs.wrong)
        )
        rows.append(row)
    return rows


def _words(*sides: Prompts) -> dict[int, str]:
    """Token → its text, of all tokens of some prompts: pairs have no tokenizer to ask for others."""
    words = {}
    for prompts in sides:
        for tokens, strings in zip(prompts.tokens.tolist(), prompts.strings, strict=True):
            words |= dict(zip(tokens, strings, strict=False))
    return words


def _marked(prompts: Prompts, other: Prompts, i: int) -> Marked:
    """A prompt whose tokens that differ from the other side's are marked."""
    n = int(prompts.lengths[i])
    differs = (
        (prompts.tokens[i, :n] != other.tokens[i, :n]).tolist() if n <= int(other.lengths[i]) else [False] * n
    )
    strings = list(map(visible, prompts.strings[i][:n]))
    # Vocabularies of whole words have no spaces in their tokens.
    if not any(string.startswith(" ") for string in prompts.strings[i][:n]):
        strings = [string if place == 0 else f" {string}" for place, string in enumerate(strings)]
    return Marked(tuple(strings), tuple(differs))


def _answers(alternatives: Sequence[Sequence[int]], words: dict[int, str]) -> str:
    """Answers as text; tokens that no prompt has by their number."""
    texts = []
    for tokens in alternatives:
        known = [words.get(token, f"token {token}") for token in tokens if token >= 0]
        if known:
            texts.append(visible("".join(known)).strip())
    return ", ".join(texts) or "–"


@card_of.register
def _store(store: ActivationStore) -> Card:
    rows = []
    for kind in store.kinds:
        layers = store.layers(kind)
        view = store[kind, layers[0]] if layers else store[kind]
        shape = " x ".join(map(str, view.data.row_shape))
        rows.append(
            {"kind": kind, "layers": _range(layers), "of a row": shape or "1", "dtype": str(view.dtype)[6:]}
        )
    folder = f" in {visible(store.path)}" if store.path is not None else " in memory"
    told = (
        f"Activations of {len(store)} prompts in {visible(store.model_name)}{folder}: "
        f"{store.nbytes() / 2**20:,.1f} MiB. store[kind, layer] has the rows of all tokens."
    )
    return Card(told, pd.DataFrame(rows))


def _range(layers: Sequence[int]) -> str:
    """Layers in words, "0 to 7" where none is left out."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers)) or "–"


@card_of.register
def _labels(labels: Labels) -> Card:
    rows = []
    for concept in labels.concepts:
        codes = concept.codes
        counts = [
            f"{visible(name)}: {int((codes == place).sum())}" for place, name in enumerate(concept.classes)
        ]
        told = ", ".join(counts) or f"{float(codes.min()):.3g} to {float(codes.max()):.3g}"
        rows.append({"concept": visible(concept.name), "rows": len(codes), "values": told})
    n_prompts = len(set(labels.prompt.tolist()))
    return Card(f"{len(labels)} labelled rows of {n_prompts} prompts.", pd.DataFrame(rows).head(SHOWN))


@card_of.register
def _probes(probes: Probes) -> Card:
    """Each concept's best probe on held-out prompts, beside the best of its controls."""
    rows = probe_rows(probes.results)
    sentence = probes_headline(rows)
    return Card(
        sentence, pd.DataFrame(rows).head(SHOWN), picture_of(probes, sentence), more=max(0, len(rows) - SHOWN)
    )


@card_of.register
def _sweep(sweep: Sweep) -> Card:
    told = f"Sweep in {visible(sweep.folder)}: {sweep.status()}."
    try:
        rows, caption = strongest_rows(sweep, SHOWN)
    except WorkbenchError as error:
        return Card(f"{told} {error}", pd.DataFrame())
    return Card(f"{told} {caption}", rows, picture_of(sweep, told))
