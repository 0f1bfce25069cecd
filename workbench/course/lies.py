"""Checkers of lesson 10: seven circuits that score 1, and the check that catches each. The notebook imports
`claim`.

Read `claim`: it makes a claim as an author in good faith might. `_caught` measures the seven checks as the
notebook does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.circuit.circuit import Circuit
from workbench.course import fixtures
from workbench.course.exercises import Wrong, called, exercise, explain, fields, number, shown
from workbench.discovery.criteria import Criteria
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.counterfactuals import counterfactual_values
from workbench.errors import UnknownName
from workbench.evaluation.evaluate import evaluate
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.prompts.pairs import PromptPairs
from workbench.tasks import grammar
from workbench.tasks.measure import measure
from workbench.tasks.registry import load_task

N = 64
UNFINISHED = "tiny@1500"
CHECKS = ("error", "fresh", "other", "random", "logits", "competence", "empty")
"""The names of the checks, as the notebook calls its functions."""
CATCHES = {
    "error": lambda value: value > 0.25,
    "fresh": lambda value: not 0.85 <= value <= 1.15,
    "other": lambda value: not 0.85 <= value <= 1.15,
    "random": lambda value: value > 0.75,
    "logits": lambda value: not 0.85 <= value <= 1.15,
    "competence": lambda value: value < 0.85,
    "empty": lambda value: value > 0.75,
}
"""When the number of a check speaks against a claim."""


@dataclass(frozen=True, eq=False)
class Claim:
    """A circuit, with what its author measured it by.

    Attributes:
        text: what the author writes.
        model: what it is a circuit of.
        circuit: its edges.
        pairs: the prompts that it was judged on.
        fresh: other prompts of the same kind.
        metric: what was measured.
        over_full: the author reports m(C) / m(full), and no run without the circuit.
    """

    text: str
    model: Any
    circuit: Circuit
    pairs: PromptPairs
    fresh: PromptPairs
    metric: str | Metric = "logit_diff"
    over_full: bool = False

    def measured(
        self,
        *,
        pairs: PromptPairs | None = None,
        metric: str | Metric | None = None,
        circuit: Circuit | None = None,
        checks: str | tuple[str, ...] = (),
    ) -> xr.Dataset:
        """`wb.evaluate` of the claim, with values of the pairs' own corrupt prompts.

        Args:
            pairs, metric, circuit: in place of the author's.
            checks: as in `wb.evaluate`.
        """
        pairs = self.pairs if pairs is None else pairs
        [value] = counterfactual_values(self.model, pairs).values()
        return evaluate(
            self.circuit if circuit is None else circuit, self.model, pairs, value=value,
            metric=metric or self.metric, checks=checks, progress=False,
        ).isel(circuit=0)  # fmt: skip

    def reported(
        self,
        *,
        pairs: PromptPairs | None = None,
        metric: str | Metric | None = None,
        circuit: Circuit | None = None,
    ) -> float:
        """The number in the author's abstract; the arguments are those of `measured`."""
        result = self.measured(pairs=pairs, metric=metric, circuit=circuit)
        if self.over_full:
            return float(result.m_circuit.mean() / result.m_full.mean())
        return float(result.faithfulness)


@lru_cache(maxsize=16)
def _pairs(kind: str, *, split: str, seed: int = 0, n: int = N) -> PromptPairs:
    return load_task("ioi", fixtures.model(), n=n, split=split, seed=seed).against(kind)


@lru_cache(maxsize=4)
def _scores(kind: str, name: str = "tiny") -> xr.DataArray:
    model, pairs = fixtures.model(name), _pairs(kind, split="train")
    value = counterfactual_values(model, pairs)[kind]
    return score_edges(model, pairs, value=value, progress=False)


def _mixed(seed: int) -> PromptPairs:
    """Held-out prompts of which three in eight have the corruption `abc`, the others `swap`."""
    sides = {kind: _pairs(kind, split="heldout", seed=seed) for kind in ("swap", "abc")}

    def rows(prompts: Any) -> list[list[int]]:
        return [row[:length].tolist() for row, length in zip(prompts.tokens, prompts.lengths, strict=True)]

    one, other = rows(sides["swap"].corrupt), rows(sides["abc"].corrupt)
    corrupt = [other[i] if i % 8 < 3 else one[i] for i in range(N)]
    swap = sides["swap"]
    return PromptPairs.of(rows(swap.clean), corrupt, swap.answers[:, 0], swap.wrong[:, 0], bos=True)


def _average() -> Claim:
    circuit = find_circuit(_scores("swap"), n_edges=140, by="signed")
    text = "The edges that support the behaviour, on prompts with corruptions of two kinds."
    return Claim(text, fixtures.model(), circuit, _mixed(0), _mixed(5))


def _chosen() -> Claim:
    """The size and the four prompts on which some circuit comes closest to 1."""
    pool = _pairs("abc", split="heldout", seed=2, n=4 * N)
    model, scores = fixtures.model(), _scores("abc")
    circuits = [find_circuit(scores, n_edges=n, by="signed") for n in range(50, 130, 10)]
    [value] = counterfactual_values(model, pool).values()
    tried = evaluate(circuits, model, pool, value=value, checks=(), progress=False)
    parts = [
        gain.values.reshape(gain.shape[0], -1, 4).sum(-1)
        for gain in (tried.m_circuit - tried.m_empty, (tried.m_full - tried.m_empty).expand_dims("circuit"))
    ]
    size, four = np.unravel_index(np.abs(parts[0] / parts[1] - 1).argmin(), parts[0].shape)
    text = "Tested on prompts that it was not found on, at the size that does best there."
    pairs = pool.select(range(4 * int(four), 4 * int(four) + 4))
    return Claim(text, model, circuits[size], pairs, _pairs("abc", split="heldout"))


def _small() -> Claim:
    text = "Six edges do it: held-out prompts, a narrow interval, all prompts alike."
    circuit = find_circuit(_scores("swap"), n_edges=10)
    pairs, fresh = (_pairs("swap", split="heldout", seed=seed) for seed in (0, 5))
    return Claim(text, fixtures.model(), circuit, pairs, fresh)


def _crowd() -> Claim:
    """Nineteen in twenty edges, drawn at random: the draw of ten that comes closest to 1."""
    full, pairs = Circuit.full(fixtures.model()), _pairs("swap", split="heldout")
    edges = np.array([str(edge) for edge in full.edge_list])
    rng = np.random.default_rng(0)
    drawn = [Circuit.of(full.graph, edges[rng.random(len(edges)) < 0.95].tolist()) for _ in range(10)]
    [value] = counterfactual_values(fixtures.model(), pairs).values()
    tried = evaluate(drawn, fixtures.model(), pairs, value=value, checks=(), progress=False)
    circuit = drawn[int(np.abs(tried.faithfulness.values - 1).argmin())]
    text = "The model prunes: without every twentieth edge it does what it did."
    return Claim(text, fixtures.model(), circuit, pairs, _pairs("swap", split="heldout", seed=5))


def _saturated() -> Claim:
    text = "The circuit answers right whenever the model does."
    circuit = find_circuit(_scores("swap"), n_edges=100)
    pairs, fresh = (_pairs("abc", split="heldout", seed=seed) for seed in (0, 5))
    return Claim(text, fixtures.model(), circuit, pairs, fresh, metric="accuracy")


def _incompetent() -> Claim:
    """A checkpoint at chance, and the size at which the ratio of two small numbers comes closest to 1."""
    text, model = "How indirect objects work in the checkpoint tiny@1500.", fixtures.model(UNFINISHED)
    pairs = _pairs("swap", split="heldout")
    circuits = [find_circuit(_scores("swap", UNFINISHED), n_edges=n) for n in range(80, 140, 5)]
    [value] = counterfactual_values(model, pairs).values()
    tried = evaluate(circuits, model, pairs, value=value, checks=(), progress=False)
    circuit = circuits[int(np.abs(tried.faithfulness.values - 1).argmin())]
    return Claim(text, model, circuit, pairs, _pairs("swap", split="heldout", seed=5))


def says_a_name(logits: Tensor) -> Tensor:
    """[example]: the probability that the next word is any name, from logits [example, vocab]."""
    names = [fixtures.model().to_single_token(name) for name in grammar.Lexicon().names]
    return logits.softmax(-1)[:, torch.tensor(names)].sum(-1)


def _base() -> Claim:
    """Two heads that write nothing of use, and a metric that the run without any edge has as well."""
    edges = [edge for head in ("a1.1", "a2.0") for edge in (f"input->{head}<v>", f"{head}->logits")]
    circuit = Circuit.of(fixtures.model(), edges)
    pairs, fresh = (_pairs("swap", split="heldout", seed=seed) for seed in (0, 5))
    metric = as_metric(says_a_name, positions="END")
    text = "Two heads make the model say a name: m(C) / m(full), in probability."
    return Claim(text, fixtures.model(), circuit, pairs, fresh, metric=metric, over_full=True)


_CLAIMS: dict[str, Callable[[], Claim]] = {
    "A": _small, "B": _average, "C": _saturated, "D": _chosen, "E": _base, "F": _crowd, "G": _incompetent,
}  # fmt: skip


@lru_cache(maxsize=8)
def claim(letter: str) -> Claim:
    """One of the seven claims of lesson 10, by its letter.

    Raises:
        UnknownName: there is no such claim.

    >>> claim("A").circuit.n_edges
    6
    """
    if letter not in _CLAIMS:
        raise UnknownName("claim", letter, _CLAIMS)
    return _CLAIMS[letter]()


@lru_cache(maxsize=64)
def _number(letter: str, check: str) -> float:
    """What a check gives of a claim."""
    one = claim(letter)
    if check == "error":
        return float(one.measured().error)
    if check == "fresh":
        return one.reported(pairs=one.fresh)
    if check == "other":
        # Claims against `abc` are asked about `swap`, all others about `abc`.
        kind = "swap" if one.pairs.counterfactual == "abc" else "abc"
        return one.reported(pairs=_pairs(kind, split="heldout"))
    if check == "random":
        return float(one.measured(checks="random").random)
    if check == "logits":
        return one.reported(metric="logit_diff")
    if check == "competence":
        return float(measure(one.model, one.pairs, progress=False)[0].right_above_wrong.mean)
    return one.reported(circuit=Circuit.empty(one.model))


@exercise("10.1", "A lie of your own", "easy", "a Circuit of tiny.")
def _own(answer: Any) -> str:
    if not isinstance(answer, Circuit):
        raise Wrong(f"a circuit is wanted, as `wb.find_circuit` returns it, not {shown(answer)}.")
    if answer.graph != claim("A").circuit.graph:
        raise Wrong(
            "this is a circuit of another graph. Score the edges of tiny, without positions or neurons."
        )
    reached = {
        kind: claim("A").reported(circuit=answer, pairs=_pairs(kind, split="heldout"))
        for kind in ("swap", "abc")
    }
    if abs(reached["swap"] - 1) > 0.1:
        raise Wrong(f"nobody would believe it: its faithfulness against swap is {reached['swap']:.2f}.")
    if reached["abc"] > 0.5:
        raise Wrong(f"that is hardly a lie: its faithfulness against abc is {reached['abc']:.2f}, above 0.5.")
    return f"{reached['swap']:.2f} in the abstract, {reached['abc']:.2f} on the question that was not asked."


@exercise(
    "10.2", "Error prompt by prompt", "medium", "a function of m_circuit, m_full and m_empty, each [example]."
)
def _error(answer: Any) -> str:
    seed = np.random.default_rng(10)
    full, empty = seed.normal(9, 2, 40), seed.normal(-1, 2, 40)
    circuit = full + np.where(np.arange(40) % 2, 6.0, -5.0)
    value = number(called(answer, circuit, full, empty))
    apart, gap = circuit - full, full - empty
    if np.isclose(value, np.abs(apart).mean() / np.abs(gap).mean(), rtol=1e-3):
        return (
            f"The circuit it was tried on has a faithfulness of {(circuit - empty).mean() / gap.mean():.2f}."
        )
    mistakes = [
        (apart.mean() / gap.mean(), "too high and too low cancel. Take sizes before means."),
        (abs(apart.mean()) / abs(gap.mean()), "too high and too low cancel. Take sizes before means."),
        ((np.abs(apart) / np.abs(gap)).mean(), "this is the mean of each prompt's ratio. Divide means."),
        (np.abs(apart).mean(), "this is in logits. Divide by the mean size of the gap."),
        (np.abs(apart).mean() / np.abs(full).mean(), "divide by the gap, not by m_full."),
        ((circuit - empty).mean() / gap.mean(), "this is the faithfulness, which sees no single prompt."),
        (1 - np.abs(apart).mean() / np.abs(gap).mean(), "this is one minus the error."),
    ]  # fmt: skip
    explain(value, mistakes, rtol=1e-3)
    raise Wrong(
        "wanted: the mean size of m_circuit - m_full, as a share of the mean size of m_full - m_empty."
    )


@exercise("10.3", "Catch them", "hard", "a dict from the letters A to G to names of checks, each used once.")
def _caught(answer: Any) -> str:
    chosen = fields(answer, [*_CLAIMS])
    for letter, check in chosen.items():
        if not isinstance(check, str) or check not in CHECKS:
            raise Wrong(f"{letter}: {shown(check)} is no check. There are {', '.join(CHECKS)}.")
    for letter, check in chosen.items():
        value = _number(letter, check)
        if not CATCHES[check](value):
            raise Wrong(f"{letter}: {check!r} gives {value:.2f}, which says nothing against this claim.")
    twice = sorted({check for check in chosen.values() if [*chosen.values()].count(check) > 1})
    if twice:
        raise Wrong(f"each of these catches its claim, but {twice[0]!r} is used more than once.")
    return "Seven lies, seven checks, and no check that catches them all."


@exercise("10.4", "No lie", "hard", "a Circuit of tiny that keeps `wb.Criteria()` against swap and abc.")
def _honest(answer: Any) -> str:
    if not isinstance(answer, Circuit):
        raise Wrong(f"a circuit is wanted, as `wb.find_circuit` returns it, not {shown(answer)}.")
    if answer.graph != claim("A").circuit.graph:
        raise Wrong(
            "this is a circuit of another graph. Score the edges of tiny, without positions or neurons."
        )
    criteria, share = Criteria(), answer.n_edges / answer.graph.n_edges
    if share > criteria.at_most:
        raise Wrong(f"it has {share:.0%} of the edges; {criteria.at_most:.0%} still count as a circuit.")
    for kind in ("swap", "abc"):
        # A seed that neither the notebook nor its solution draws.
        result = claim("A").measured(circuit=answer, pairs=_pairs(kind, split="heldout", seed=9))
        for letter, held in criteria.held(
            {str(name): result[name].values for name in result.data_vars}
        ).items():
            if not held:
                raise Wrong(
                    f"against {kind} it breaks criterion ({letter}) of `wb.Criteria` on fresh prompts."
                )
    return f"{answer.n_edges} edges that keep all criteria against both corruptions, on prompts nobody chose."
