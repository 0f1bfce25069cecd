"""Checkers of lesson 5: activation patching, in both directions."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.course import fixtures as bench
from workbench.course.exercises import Wrong, called, exercise, fields, names, number, shown, table
from workbench.engine.capture import capture_pairs
from workbench.engine.values import from_store
from workbench.errors import UnknownName, WorkbenchError
from workbench.interventions.effects import effects
from workbench.planted_models.planted import planted
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Site, grid
from workbench.stores.store import ActivationStore

N = 64
WHOLE = 0.9


def gate(name: str) -> tuple[Any, PromptPairs]:
    """A planted model and prompts on which two of its heads work as a gate.

    Args:
        name: "and": the model says `yes` if a p word and a q word are there, and the corrupt prompts have neither.
            "or": it repeats the word in capitals; a second head does that where the first is silent, and the corrupt
            prompts have no capitals.

    Raises:
        UnknownName: another name.
    """
    if name not in ("and", "or"):
        raise UnknownName("gate", name, ("and", "or"))
    made = planted("conjunction" if name == "and" else "backup", n=24)
    words = made.words
    keep = [i for i, answer in enumerate(made.answers[:, 0, 0]) if name == "or" or words[answer] == "yes"]
    clean = [[words[token] for token in row] for row in made.clean[keep].tolist()]
    corrupt = [_without(row, words) if name == "and" else [_small(word) for word in row] for row in clean]
    sides = [
        Prompts.of([[words.index(word) for word in row] for row in rows], strings=rows, bos=True)
        for rows in (clean, corrupt)
    ]
    return made.model, PromptPairs(
        sides[0], sides[1], made.answers[keep], made.wrong[keep], {"task": f"gate-{name}"}
    )


def _without(row: list[str], words: tuple[str, ...]) -> list[str]:
    """The prompt with unused fillers in the place of p and q words."""
    unused = (word for word in words if word[0] == "f" and word not in row)
    return [next(unused) if word[0] in "pq" else word for word in row]


def _small(word: str) -> str:
    return word if word == "BOS" else word.lower()


@lru_cache(maxsize=2)
def _ends() -> tuple[np.ndarray, np.ndarray]:
    """[example], [example]: logit differences of the clean and the corrupt run of `tiny`."""
    pairs = bench.pairs("ioi", N)
    rows = torch.arange(N)
    with torch.no_grad():
        ends = [
            bench.model()(side.tokens)[rows, pairs.clean.lengths - 1] for side in (pairs.clean, pairs.corrupt)
        ]
    right, wrong = pairs.answers[:, 0, 0], pairs.wrong[:, 0, 0]
    clean, corrupt = ((end[rows, right] - end[rows, wrong]).numpy() for end in ends)
    return clean, corrupt


@lru_cache(maxsize=64)
def _patched(site: str, base: str) -> np.ndarray:
    """[example]: logit differences of a run of `tiny` with one site of the other run."""
    clean, corrupt = bench.stores("ioi", N)
    value = from_store(clean if base == "corrupt" else corrupt)
    change = effects(
        bench.model(), bench.pairs("ioi", N), sites=[site], value=value, base=base, progress=False
    ).values[:, 0]
    return change + _ends()[base == "corrupt"]


@exercise(
    "5.1", "Patch by hand", "easy", "a function from a site, as 'z[3.7]', to logit differences [example]."
)
def _by_hand(answer: Any) -> str:
    for site in ("z[3.7]", "mlp_out[1]"):
        right, base = _patched(site, "corrupt"), _ends()[1]
        got = table(called(answer, site), (N,), "example")
        if np.allclose(got, right, atol=1e-3):
            continue
        if np.allclose(got, _patched(site, "clean"), atol=1e-3):
            raise Wrong(
                "this is noising: your run is the clean one with a corrupt activation. Patch the other way round."
            )
        if np.allclose(got, right - base, atol=1e-3):
            raise Wrong(
                "this is how much the patch changes. Wanted is the patched run's logit difference itself."
            )
        if np.allclose(got, base, atol=1e-3):
            raise Wrong("these are the logit differences of the corrupt run: nothing was patched.")
        raise Wrong(
            f"with {site} patched your logit differences are off by up to {np.abs(got - right).max():.2g}."
        )
    return "Everything in that run comes from the corrupt prompt, but for one activation and what follows from it."


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
    gap[0] = 1e-3
    clean, patched = corrupt + gap, corrupt + 0.3 * gap + rng.normal(size=40)
    right = (patched - corrupt).mean() / gap.mean()
    got = number(called(answer, patched, clean, corrupt))
    if np.isclose(got, right, rtol=1e-4):
        return "0 is the corrupt run and 1 the clean one; beyond them is possible."
    for wrong, said in (
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
    ):
        if np.isclose(got, wrong, rtol=1e-4):
            raise Wrong(said)
    ends = [float(number(called(answer, run, clean, corrupt))) for run in (corrupt, clean)]
    if np.allclose(ends, (0, 1), atol=1e-4):
        raise Wrong(
            "at both ends yours is right, in between it is not. Does every prompt count, by how far its two runs are apart?"
        )
    raise Wrong(
        f"for the corrupt run itself yours is {ends[0]:.3g}, for the clean run {ends[1]:.3g}; what should they be?"
    )


@exercise("5.3", "A head and its place", "medium", "one site of a head at one position, as 'z[0.3]@S1'.")
def _place(answer: Any) -> str:
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
    share = _shares()
    if (site.layer, site.head) not in {(layer, head) for layer, head, _ in share} or site.pos not in PLACES:
        raise Wrong(f"{site} is not in this model, or its position is none of {', '.join(PLACES)}.")
    if (mine := share[site.layer or 0, site.head, str(site.pos)]) < max(share.values()):
        raise Wrong(
            f"{site} restores {mine:.0%} of the difference, and another head and position restores more."
        )
    return f"It restores {mine:.0%} by itself, in a run that is corrupt everywhere else."


PLACES = ("IO", "S1", "S2", "END")


@lru_cache(maxsize=1)
def _shares() -> dict[tuple[int, int, str], float]:
    """By layer, head and position: the share of the difference that denoising it restores."""
    clean, _ = bench.stores("ioi", N)
    sites = grid("z", bench.model(), pos=list(PLACES))
    made = effects(
        bench.model(),
        bench.pairs("ioi", N),
        sites=sites,
        value=from_store(clean),
        base="corrupt",
        progress=False,
    )
    high, low = (ends.mean() for ends in _ends())
    mean = made.transpose("example", "layer", "head", "pos").mean("example").values / (high - low)
    return {(*where[:2], PLACES[where[2]]): float(share) for where, share in np.ndenumerate(mean)}


@lru_cache(maxsize=2)
def _gate(name: str) -> tuple[Any, PromptPairs]:
    """A gate of the checkers' own, which no cell of a notebook holds."""
    return gate(name)


@lru_cache(maxsize=2)
def _gate_stores(name: str) -> tuple[ActivationStore, ActivationStore]:
    return capture_pairs(*_gate(name), progress=False)


@lru_cache(maxsize=64)
def _carried(name: str, heads: tuple[str, ...], base: str) -> float:
    """The share of the difference between a gate's runs that moves with these heads."""
    model, pairs = _gate(name)
    value = from_store(_gate_stores(name)[0 if base == "corrupt" else 1])
    site = tuple(f"z[{head[1:]}]" for head in heads)
    made = effects(model, pairs, sites=[site], value=value, base=base, normalized=True, progress=False)
    return float(made.mean())


def _heads(name: str) -> list[str]:
    return bench.heads(_gate(name)[0])


@exercise(
    "5.4",
    "Sufficient, necessary",
    "medium",
    'a table {"and": {"sufficient": [heads], "necessary": [heads]}, "or": the same}.',
)
def _kinds(answer: Any) -> str:
    for gate_name, told in fields(answer, ("and", "or")).items():
        kinds = fields(told, ("sufficient", "necessary"))
        for kind, base, does in (
            ("sufficient", "corrupt", "denoised alone, restores"),
            ("necessary", "clean", "noised alone, takes"),
        ):
            heads = _heads(gate_name)
            given = names(kinds[kind], heads, "head")
            share = {head: _carried(gate_name, (head,), base) for head in heads}
            for head in sorted(given):
                if share[head] < WHOLE:
                    raise Wrong(
                        f'{head} is not {kind} in "{gate_name}": {does} {abs(share[head]):.0%} of the difference.'
                    )
            if missing := {head for head, value in share.items() if value >= WHOLE} - given:
                raise Wrong(f'"{gate_name}" has {len(missing)} {kind} more.')
    return "Denoising finds the parts of an OR one by one and misses those of an AND; noising the other way round."


@exercise("5.5", "Necessary together", "hard", "the smallest set of heads, as a list of names.")
def _together(answer: Any) -> str:
    heads = _heads("or")
    given = names(answer, heads, "head")
    if not given:
        raise Wrong("noising nothing takes nothing.")
    taken = _carried("or", tuple(sorted(given)), "clean")
    if taken < WHOLE:
        raise Wrong(f"noised together they take {abs(taken):.0%} of the difference.")
    if any(
        _carried("or", tuple(sorted(given - {head})), "clean") >= WHOLE for head in given if len(given) > 1
    ):
        raise Wrong("they take all of it, and a smaller set does too.")
    return "No single head is missed. Sweeps over single sites cannot find this; pairs or larger sets can."
