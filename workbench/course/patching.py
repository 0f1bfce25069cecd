"""Checkers of lesson 5: activation patching, in both directions. The notebook imports `gate`."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from workbench.course import fixtures
from workbench.course.exercises import Wrong, called, exercise, explain, fields, names, number, shown, table
from workbench.engine.capture import capture_pairs
from workbench.engine.values import from_store
from workbench.errors import UnknownName, WorkbenchError
from workbench.interventions.effects import effects
from workbench.models.model import Model
from workbench.planted_models.planted import planted
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Site, grid
from workbench.stores.store import ActivationStore

N = 64
WHOLE = 0.9
"""A share of the difference between the runs that counts as all of it."""
POSITIONS = ("IO", "S1", "S2", "END")


def gate(name: str) -> tuple[Model, PromptPairs]:
    """A planted model, and prompts on which two of its heads work as a gate.

    Args:
        name: "and": the model says `yes` if a p word and a q word are there, and the corrupt prompts have
            neither. "or": it repeats the word in capitals; a second head does that where the first is silent,
            and the corrupt prompts have no capitals.

    Raises:
        UnknownName: another name.
    """
    if name not in ("and", "or"):
        raise UnknownName("gate", name, ("and", "or"))
    # A planted model, since its heads' roles are known: the checker need not trust a measurement.
    model = planted("conjunction" if name == "and" else "backup", n=24)
    words = model.words
    keep = [i for i, word in enumerate(model.answers[:, 0, 0]) if name == "or" or words[word] == "yes"]
    clean = [[words[token] for token in row] for row in model.clean[keep].tolist()]
    corrupt = [_corrupted(row, words, name) for row in clean]
    sides = []
    for rows in (clean, corrupt):
        tokens = [[words.index(word) for word in row] for row in rows]
        sides.append(Prompts.of(tokens, strings=rows, bos=True))
    provenance = {"task": f"gate-{name}"}
    pairs = PromptPairs(sides[0], sides[1], model.answers[keep], model.wrong[keep], provenance)
    return model.model, pairs


def _corrupted(row: list[str], words: tuple[str, ...], name: str) -> list[str]:
    """The prompt with unused fillers in place of p and q words ("and"), or without capitals ("or")."""
    if name == "or":
        return [word if word == "BOS" else word.lower() for word in row]
    unused = (word for word in words if word[0] == "f" and word not in row)
    return [next(unused) if word[0] in "pq" else word for word in row]


@lru_cache(maxsize=2)
def _ends() -> tuple[np.ndarray, np.ndarray]:
    """[example], [example]: logit differences of the clean and the corrupt run of `tiny`."""
    pairs, rows = fixtures.pairs("ioi", N), torch.arange(N)
    right, wrong = pairs.answers[:, 0, 0], pairs.wrong[:, 0, 0]
    differences = []
    for side in (pairs.clean, pairs.corrupt):
        with torch.no_grad():
            logits = fixtures.model()(side.tokens)[rows, pairs.clean.lengths - 1]
        differences.append((logits[rows, right] - logits[rows, wrong]).numpy())
    return differences[0], differences[1]


@lru_cache(maxsize=64)
def _patched(site: str, base: Literal["clean", "corrupt"]) -> np.ndarray:
    """[example]: logit differences of a run of `tiny` with one site of the other run."""
    clean, corrupt = fixtures.stores("ioi", N)
    value = from_store(clean if base == "corrupt" else corrupt)
    pairs = fixtures.pairs("ioi", N)
    change = effects(fixtures.model(), pairs, sites=[site], value=value, base=base, progress=False)
    return change.values[:, 0] + _ends()[base == "corrupt"]


@exercise(
    "5.1", "Patch by hand", "easy", "a function from a site, as 'z[3.7]', to logit differences [example]."
)
def _by_hand(answer: Any) -> str:
    for site in ("z[3.7]", "mlp_out[1]"):
        right, base = _patched(site, "corrupt"), _ends()[1]
        values = table(called(answer, site), (N,), "example")
        # Runs of one prompt and of a padded batch differ in the fifth digit; each mistake by whole logits.
        if np.allclose(values, right, atol=1e-3):
            continue
        mistakes = [
            (
                _patched(site, "clean"),
                "this is noising: your run is the clean one with a corrupt activation. Patch the other way "
                "round.",
            ),
            (
                right - base,
                "this is how much the patch changes. Wanted is the patched run's logit difference itself.",
            ),
            (base, "these are the logit differences of the corrupt run: nothing was patched."),
        ]
        explain(values, mistakes, atol=1e-3)
        off = np.abs(values - right).max()
        raise Wrong(f"with {site} patched your logit differences are off by up to {off:.2g}.")
    return (
        "Everything in that run comes from the corrupt prompt, but for one activation and what follows from "
        "it."
    )


@exercise(
    "5.2",
    "How much is restored",
    "easy",
    "a function of three arrays [example] (patched, clean, corrupt) to one number.",
)
def _recovery(answer: Any) -> str:
    rng = np.random.default_rng(5)
    corrupt = rng.normal(size=40)
    gap = rng.normal(3, 1, size=40)
    gap[0] = 1e-3  # one prompt whose runs agree: a mean of ratios falls for it
    clean, patched = corrupt + gap, corrupt + 0.3 * gap + rng.normal(size=40)
    right = (patched - corrupt).mean() / gap.mean()
    value = number(called(answer, patched, clean, corrupt))
    if np.isclose(value, right, rtol=1e-4):
        return "0 is the corrupt run and 1 the clean one; values beyond them are possible."
    mistakes = [
        (
            ((patched - corrupt) / gap).mean(),
            "you divide first and average then: a prompt whose two runs agree decides the mean.",
        ),
        (
            (patched - clean).mean() / (corrupt - clean).mean(),
            "at the clean run yours is 0, at the corrupt run 1.",
        ),
        (patched.mean() / clean.mean(), "the corrupt run must give 0, and yours does not count from there."),
        ((patched - corrupt).mean() / clean.mean(), "the clean run must give 1: what is the whole distance?"),
        (
            (patched - corrupt).mean(),
            "this is in logits. A share of the distance between the two runs is wanted.",
        ),
    ]
    explain(value, mistakes, rtol=1e-4)
    ends = [float(number(called(answer, run, clean, corrupt))) for run in (corrupt, clean)]
    if np.allclose(ends, (0, 1), atol=1e-4):
        raise Wrong(
            "at both ends yours is right, in between it is not. Does every prompt count, by how far its two "
            "runs are apart?"
        )
    raise Wrong(
        f"for the corrupt run itself yours is {ends[0]:.3g}, for the clean run {ends[1]:.3g}; what should "
        "they be?"
    )


@exercise("5.3", "A head and its place", "medium", "one site of a head at one position, as 'z[0.3]@S1'.")
def _head_at_position(answer: Any) -> str:
    if not isinstance(answer, str | Site):
        raise Wrong(f"a site as text is wanted, such as 'z[0.3]@S1', not {shown(answer)}.")
    try:
        site = Site.parse(str(answer).replace(" ", "")[:40])
    except WorkbenchError as error:
        raise Wrong(str(error)) from None
    if site.kind != "z" or site.head is None:
        raise Wrong(f"{site} is not a head's z.")
    if site.pos is None:
        raise Wrong(f"{site} patches the head at every position. Which one is it?")
    shares = _shares()
    share = shares.get((site.layer or 0, site.head, str(site.pos)))
    if share is None:
        raise Wrong(f"{site} is not in this model, or its position is none of {', '.join(POSITIONS)}.")
    if share < max(shares.values()):
        raise Wrong(
            f"{site} restores {share:.0%} of the difference; another head and position restores more."
        )
    return f"It restores {share:.0%} by itself, in a run that is corrupt everywhere else."


@lru_cache(maxsize=1)
def _shares() -> dict[tuple[int, int, str], float]:
    """By layer, head and position: the share of the difference that denoising it restores."""
    clean, _ = fixtures.stores("ioi", N)
    sites = grid("z", fixtures.model(), pos=list(POSITIONS))
    pairs = fixtures.pairs("ioi", N)
    table = effects(
        fixtures.model(), pairs, sites=sites, value=from_store(clean), base="corrupt", progress=False
    )
    high, low = (ends.mean() for ends in _ends())
    mean = table.transpose("example", "layer", "head", "pos").mean("example").values / (high - low)
    return {
        (layer, head, POSITIONS[pos]): float(mean[layer, head, pos])
        for layer, head, pos in np.ndindex(*mean.shape)
    }


@lru_cache(maxsize=2)
def _gate(name: str) -> tuple[Model, PromptPairs]:
    """A gate of the checkers' own, which no cell of a notebook holds."""
    return gate(name)


@lru_cache(maxsize=2)
def _gate_stores(name: str) -> tuple[ActivationStore, ActivationStore]:
    return capture_pairs(*_gate(name), progress=False)


@lru_cache(maxsize=64)
def _carried(name: str, heads: tuple[str, ...], base: Literal["clean", "corrupt"]) -> float:
    """The share of the difference between a gate's runs that moves with these heads."""
    model, pairs = _gate(name)
    value = from_store(_gate_stores(name)[0 if base == "corrupt" else 1])
    site = tuple(f"z[{head[1:]}]" for head in heads)
    table = effects(model, pairs, sites=[site], value=value, base=base, normalized=True, progress=False)
    return float(table.mean())


def _heads(name: str) -> list[str]:
    return fixtures.heads(_gate(name)[0])


@exercise(
    "5.4",
    "Sufficient, necessary",
    "medium",
    'a table {"and": {"sufficient": [heads], "necessary": [heads]}, "or": the same}.',
)
def _sufficient_necessary(answer: Any) -> str:
    for name, row in fields(answer, ("and", "or")).items():
        kinds = fields(row, ("sufficient", "necessary"))
        _judge_heads(name, "sufficient", kinds["sufficient"], "corrupt", "denoised alone, restores")
        _judge_heads(name, "necessary", kinds["necessary"], "clean", "noised alone, takes")
    return (
        "Denoising finds the parts of an OR one by one and misses those of an AND; noising the other way "
        "round."
    )


def _judge_heads(name: str, kind: str, answer: Any, base: Literal["clean", "corrupt"], does: str) -> None:
    """Raise `Wrong` where a named head does not move the whole difference alone, or an unnamed one does."""
    heads = _heads(name)
    chosen = names(answer, heads, "head")
    shares = {head: _carried(name, (head,), base) for head in heads}
    for head in sorted(chosen):
        if shares[head] < WHOLE:
            raise Wrong(
                f'{head} is not {kind} in "{name}": {does} {abs(shares[head]):.0%} of the difference.'
            )
    missing = {head for head, share in shares.items() if share >= WHOLE} - chosen
    if missing:
        raise Wrong(f'"{name}" has {len(missing)} {kind} more.')


@exercise("5.5", "Necessary together", "hard", "the smallest set of heads, as a list of names.")
def _together(answer: Any) -> str:
    chosen = names(answer, _heads("or"), "head")
    if not chosen:
        raise Wrong("noising nothing takes nothing.")
    taken = _carried("or", tuple(sorted(chosen)), "clean")
    if taken < WHOLE:
        raise Wrong(f"noised together they take {abs(taken):.0%} of the difference.")
    for head in sorted(chosen):
        rest = tuple(sorted(chosen - {head}))
        if rest and _carried("or", rest, "clean") >= WHOLE:
            raise Wrong("they take all of it, and a smaller set does too.")
    return "No single head is missed. Sweeps over single sites cannot find this; pairs or larger sets can."
