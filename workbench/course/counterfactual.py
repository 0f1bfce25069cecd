"""Checkers of lesson 9: one circuit against two corruptions of the same prompts."""

from functools import lru_cache
from typing import Any

import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.course import fixtures
from workbench.course.exercises import Wrong, all_names, exercise, explain, fields, names, number, shown
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.counterfactuals import counterfactual_values
from workbench.engine.values import Value
from workbench.evaluation.evaluate import evaluate
from workbench.interventions.effects import effects
from workbench.sites import grid

N, EDGES, MOST = 64, 5, 150
KINDS = ("swap", "abc")
NEAR, LARGE, SMALL = (0.88, 1.12), 0.3, 0.05


@lru_cache(maxsize=2)
def _values(split: str) -> dict[str, Value]:
    """The value of each corruption on the prompts of a split."""
    return counterfactual_values(fixtures.model(), fixtures.pairs("ioi", N, split=split))


def _measured(circuit: Circuit, split: str = "heldout") -> dict[str, float]:
    """Corruption → the circuit's faithfulness."""
    pairs = fixtures.pairs("ioi", N, split=split)
    result = evaluate(circuit, fixtures.model(), pairs, value=_values(split), checks=(), progress=False).isel(
        circuit=0
    )
    return {kind: float(result.faithfulness.sel(ablation=kind)) for kind in KINDS}


@lru_cache(maxsize=1)
def _famous() -> Circuit:
    """The five best edges against `swap`."""
    pairs = fixtures.pairs("ioi", N)
    value = _values("train")["swap"]
    scores = score_edges(fixtures.model(), pairs.against("swap"), value=value, progress=False)
    return find_circuit(scores, n_edges=EDGES)


@lru_cache(maxsize=2)
def _of_famous(split: str) -> dict[str, float]:
    return _measured(_famous(), split)


@lru_cache(maxsize=1)
def _shares() -> dict[str, dict[str, float]]:
    """Corruption → head → the share of the gap that its output of the corrupt run takes."""
    model, pairs = fixtures.model(), fixtures.pairs("ioi", N, split="heldout")
    shares = {}
    for kind in KINDS:
        table: xr.DataArray = effects(
            model, pairs.against(kind), sites=grid("z", model), value=_values("heldout")[kind],
            normalized=True, progress=False,
        ).mean("example")  # fmt: skip
        shares[kind] = dict(zip(fixtures.heads(model), table.values.ravel().tolist(), strict=True))
    return shares


@exercise(
    "9.1", "Your bet", "easy", "a dict of 'low' and 'high': where you expect the faithfulness against abc."
)
def _bet(answer: Any) -> str:
    values = {name: number(value) for name, value in fields(answer, ("low", "high")).items()}
    if values["low"] >= values["high"]:
        raise Wrong("'low' is not below 'high'.")
    if values["low"] < -1 or values["high"] > 2:
        raise Wrong("faithfulness is 0 for no edge and 1 for the model; bet between -1 and 2.")
    if values["high"] - values["low"] > 0.5:
        raise Wrong("a bet that nearly nothing can lose is none. Make it 0.5 wide at most.")
    return "Noted. No number is a wrong bet; what it is worth shows below."


@exercise(
    "9.2",
    "The other corruption",
    "easy",
    "a dict of 'swap' and 'abc', each with a faithfulness on `heldout`.",
)
def _other(answer: Any) -> str:
    values = {name: number(value) for name, value in fields(answer, KINDS).items()}
    right, train = _of_famous("heldout"), _of_famous("train")
    mistakes = [
        ([right["abc"], right["swap"]], "the two are exchanged."),
        ([train[kind] for kind in KINDS], "these are the prompts that the circuit was found on."),
        ([right["swap"]] * 2, "both are against `swap`. The value and the pairs have to be those of `abc`."),
        ([right["abc"]] * 2, "both are against `abc`."),
    ]
    given = [values[kind] for kind in KINDS]
    for kind in KINDS:
        if abs(values[kind] - right[kind]) > 0.003:
            explain(given, mistakes, atol=0.003)
            raise Wrong(f"{kind!r} is not that of the five edges on the {N} held-out prompts.")
    return "The same edges, prompts and model. What changed is the question."


@exercise("9.3", "What swap cannot see", "medium", "names of heads, as ['a0.3', 'a1.5'].")
def _unseen(answer: Any) -> str:
    shares, why_not = _shares(), {}
    for name in shares["swap"]:
        swap, abc = shares["swap"][name], shares["abc"][name]
        kept = abc > LARGE and abs(swap) < SMALL
        why_not[name] = "" if kept else f"takes {swap:.0%} against swap and {abc:.0%} against abc."
    all_names(names(answer, [*why_not], "head of tiny"), why_not)
    return "Both names are in both prompts of `swap`, so what such heads do for either name cancels there."


@exercise("9.4", "A circuit for both", "hard", f"a Circuit of tiny with at most {MOST} edges.")
def _both(answer: Any) -> str:
    if not isinstance(answer, Circuit):
        raise Wrong(f"a circuit is wanted, as `wb.find_circuit` returns it, not {shown(answer)}.")
    if answer.graph != _famous().graph:
        raise Wrong(
            "this is a circuit of another graph. Score the edges of tiny, without positions or neurons."
        )
    if answer.n_edges > MOST:
        raise Wrong(f"it has {answer.n_edges} edges; {MOST} are allowed.")
    reached = _measured(answer)
    low, high = NEAR
    for kind in KINDS:
        if not low <= reached[kind] <= high:
            raise Wrong(f"against {kind} its faithfulness on held-out prompts is {reached[kind]:.2f}.")
    return f"{answer.n_edges} edges, and both questions: {reached['swap']:.2f} and {reached['abc']:.2f}."
