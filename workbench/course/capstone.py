"""Checkers of lesson 13: the rubric of a study, measured again from its prompts and its circuit."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.course import fixtures
from workbench.course.exercises import Wrong, exercise, fields, names, number
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate
from workbench.experiment import PairsInModel
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Shape
from workbench.tasks.task import TASKS

LEAST, MOST = 24, 200
"""Pairs of a set."""
SMALL = 0.05
"""Largest circuit, as a share of the model's edges."""
FAITHFUL = 0.8
"""Faithfulness on held-out prompts that a circuit needs."""
MISSED = 0.1
"""Faithfulness that a needed component costs when it is taken out."""
SECTIONS = ("Question", "Prompts", "Circuit", "Controls", "Limits")


@lru_cache(maxsize=4)
def _data(pairs: PromptPairs) -> PairsInModel:
    """These prompts in `tiny`, whose activations are captured once."""
    return PairsInModel.of(fixtures.model(), pairs)


@lru_cache(maxsize=16)
def _measured(
    circuits: tuple[Circuit, ...], pairs: PromptPairs, value: str, checks: tuple[str, ...] = ()
) -> xr.Dataset:
    """The course's own evaluation of circuits on prompts, with "zero" or "corrupt" values."""
    try:
        chosen = _data(pairs).value(value)
        return evaluate(list(circuits), fixtures.model(), pairs, value=chosen, checks=checks, progress=False)
    except (WorkbenchError, IndexError, RuntimeError) as error:
        raise Wrong(f"this cannot be measured on tiny: {error}") from error


def _pairs(answer: Any, name: str) -> PromptPairs:
    if not isinstance(answer, PromptPairs):
        raise Wrong(
            f"{name}: PromptPairs are wanted (PromptPairs.from_csv, from_dataframe), not "
            f"{type(answer).__name__}."
        )
    if not LEAST <= len(answer) <= MOST:
        raise Wrong(f"{name}: {LEAST} to {MOST} pairs are wanted, and there are {len(answer)}.")
    return answer


@lru_cache(maxsize=8)
def _check_behaviour(name: str, pairs: PromptPairs) -> None:
    """Raise `Wrong` where a set of prompts shows no behaviour of one's own."""
    if pairs.provenance.get("task") in TASKS:
        raise Wrong(
            f"{name}: these are the prompts of the task {pairs.provenance['task']!r}. Write some of your own."
        )
    if not pairs.equal_lengths:
        raise Wrong(
            f"{name}: in some pairs clean and corrupt differ in length, so that no circuit can be run."
        )
    if len(set(pairs.clean.ids)) < len(pairs):
        raise Wrong(f"{name}: some clean prompts occur twice.")
    counts = np.unique(pairs.answers[:, 0, 0].numpy(), return_counts=True)[1]
    if counts.max() > 0.7 * len(pairs):
        raise Wrong(
            f"{name}: one word is right in {counts.max() / len(pairs):.0%} of the pairs. A model that always "
            "says it would pass."
        )
    changed = (pairs.clean.tokens != pairs.corrupt.tokens).sum(1) / pairs.clean.lengths
    if changed.mean() > 1 / 3:
        raise Wrong(
            f"{name}: the corrupt prompts change {changed.mean():.0%} of the tokens; then what made the "
            "difference?"
        )
    runs = _measured((Circuit.empty(fixtures.model()),), pairs, "corrupt")
    right = float((runs["m_full"] > 0).mean())
    if right < 0.9:
        raise Wrong(
            f"{name}: tiny prefers the right answer in {right:.0%} of the pairs. There is no behaviour to "
            "explain yet."
        )
    if float(runs["m_empty"].mean()) > 0.5 * float(runs["m_full"].mean()):
        raise Wrong(
            f"{name}: the corrupt prompts keep more than half of the logit difference. Change what the "
            "answer depends on."
        )


@dataclass(frozen=True)
class Submission:
    """A circuit that was handed in, its held-out prompts, and its evaluation on them with corrupt values."""

    circuit: Circuit
    heldout: PromptPairs
    evaluation: xr.Dataset

    @property
    def faithfulness(self) -> float:
        """Of the circuit on the held-out prompts."""
        return float(self.evaluation["faithfulness"][0])


def _submission(answer: Any) -> Submission:
    circuit, heldout = fields(answer, ("circuit", "heldout")).values()
    if not isinstance(circuit, Circuit):
        raise Wrong(
            f"circuit: a Circuit is wanted (find_circuit, acdc, learn_circuit), not {type(circuit).__name__}."
        )
    if circuit.graph != Graph(Shape.of(fixtures.model())):
        raise Wrong(
            "circuit: its graph is not the plain one of tiny. A circuit with positions or neurons has "
            ".collapsed."
        )
    heldout = _pairs(heldout, "heldout")
    _check_behaviour("heldout", heldout)
    return Submission(circuit, heldout, _measured((circuit,), heldout, "corrupt"))


def _close(value: Any, right: float, tolerance: float) -> bool:
    return abs(number(value) - right) <= tolerance


@exercise(
    "13.1", "Prompts", "medium", '{"found": PromptPairs, "heldout": PromptPairs} of a behaviour of tiny.'
)
def _prompts(answer: Any) -> str:
    sets = {}
    for name, pairs in fields(answer, ("found", "heldout")).items():
        sets[name] = _pairs(pairs, name)
    ids = [{*pairs.clean.ids, *pairs.corrupt.ids} for pairs in sets.values()]
    shared = set.intersection(*ids)
    if shared:
        raise Wrong(
            f"{len(shared)} prompts are in both sets, clean or corrupt. PromptPairs.split keeps them apart."
        )
    for name, pairs in sets.items():
        _check_behaviour(name, pairs)
    return f"{len(sets['found'])} pairs to look at and {len(sets['heldout'])} to judge by."


@exercise(
    "13.2",
    "Circuit and score",
    "medium",
    '{"circuit", "heldout", "faithfulness", "low", "high"}: three numbers on held-out prompts.',
)
def _score(answer: Any) -> str:
    scores = fields(answer, ("faithfulness", "low", "high")).values()
    score, low, high = (number(value) for value in scores)
    study = _submission(answer)
    circuit, heldout = study.circuit, study.heldout
    sides = zip(heldout.clean.ids, heldout.corrupt.ids, strict=True)
    seen = np.mean([not circuit.prompt_ids.isdisjoint(pair) for pair in sides])
    # Either side counts: a held-out pair whose corrupt prompt was searched on is not held out.
    if seen:
        raise Wrong(f"the circuit was found on {seen:.0%} of the held-out prompts, so nothing is held out.")
    share = circuit.n_edges / circuit.graph.n_edges
    if share > SMALL:
        raise Wrong(
            f"the circuit has {share:.0%} of all edges; at most {SMALL:.0%} make an explanation here."
        )
    if study.faithfulness < FAITHFUL:
        raise Wrong(
            f"on the held-out prompts the circuit keeps less than {FAITHFUL:.0%} of the behaviour. More "
            "edges, or better ones?"
        )
    if not circuit.prompt_ids:
        raise Wrong(
            "the circuit does not say which prompts it was found on, so nothing shows that others are held "
            "out. What find_circuit, acdc and learn_circuit return says it; Circuit.of takes prompt_ids=."
        )
    if _close(score, 100 * study.faithfulness, 1):
        raise Wrong("the score is in percent; 1 is the whole behaviour.")
    if not _close(score, study.faithfulness, 0.01):
        raise Wrong(
            f"measured again with this circuit and these prompts, faithfulness is not {score:.3g}. Held-out "
            "prompts, corrupt values?"
        )
    if not low <= score <= high:
        raise Wrong("the score is not between low and high.")
    if low == high:
        raise Wrong(
            "an interval without width says that another sample of prompts would give the same number."
        )
    interval = (float(study.evaluation["low"][0]), float(study.evaluation["high"][0]))
    if not (_close(low, interval[0], 0.03) and _close(high, interval[1], 0.03)):
        raise Wrong("the interval is not the 95 % bootstrap interval over the held-out prompts.")
    return f"{circuit.n_edges} edges, and {len(heldout)} prompts that had no say in them."


@exercise(
    "13.3",
    "Controls",
    "medium",
    '{"circuit", "heldout", "random", "complement", "zero"}: three scores to compare with.',
)
def _controls(answer: Any) -> str:
    values = {}
    for name, value in fields(answer, ("random", "complement", "zero")).items():
        values[name] = number(value)
    study = _submission(answer)
    circuits, score = (study.circuit,), study.faithfulness
    checked = _measured(circuits, study.heldout, "corrupt", ("random", "complement"))
    zeroed = float(_measured(circuits, study.heldout, "zero")["faithfulness"][0])
    controls = (
        (
            "random",
            float(checked["random"][0]),
            0.1,  # random circuits are drawn: another seed gives another mean
            "the mean faithfulness of random circuits with as many edges",
        ),
        (
            "complement",
            float(checked["complement"][0]),
            0.005,
            "the faithfulness of all edges but the circuit's",
        ),
        ("zero", zeroed, 0.005, "the circuit's faithfulness when what is left out is set to zero"),
    )
    for name, right, tolerance, meaning in controls:
        if values[name] == 0 and right != 0:
            raise Wrong(f"{name}: exactly 0 is hardly ever measured. Give the number as it came out.")
        if _close(values[name], right, tolerance):
            continue
        message = (
            f"{name}: wanted is {meaning}, measured on the held-out prompts, and it is not "
            f"{values[name]:.3g}."
        )
        if _close(values[name], score, 0.02):
            message += " That is the circuit's own score, with corrupt values."
        raise Wrong(message)
    if controls[0][1] > score - 0.2:
        raise Wrong("random circuits do nearly as well as yours: the score says nothing about these edges.")
    agree = "agree" if abs(zeroed - score) < 0.2 else "disagree: say in your report what that means"
    return f"Zero and corrupt values {agree}."


@exercise(
    "13.4",
    "What is needed",
    "hard",
    '{"circuit", "heldout", "needed"}: names of heads and MLPs, such as ["a0.1", "m2"].',
)
def _needed(answer: Any) -> str:
    needed = fields(answer, ["needed"])["needed"]
    study = _submission(answer)
    members = [name for name in study.circuit.nodes if name not in ("input", "logits")]
    if not members:
        raise Wrong("the circuit has no head and no MLP.")
    chosen = names(needed, members, "head or MLP of the circuit")
    without = tuple(_without(study.circuit, name) for name in members)
    scores = _measured(without, study.heldout, "corrupt")["faithfulness"].values
    costs = dict(zip(members, study.faithfulness - scores, strict=True))
    for name in chosen:
        if costs[name] < MISSED - 0.01:
            raise Wrong(f"without {name} the circuit's faithfulness falls by only {costs[name]:.2f}.")
    left = [name for name, cost in costs.items() if cost > MISSED + 0.01 and name not in chosen]
    if left:
        raise Wrong(f"{len(left)} more cost {MISSED} or more when they are taken out.")
    return f"{len(chosen)} of {len(members)} components; the others help little by themselves."


def _without(circuit: Circuit, name: str) -> Circuit:
    """The circuit without a component, whose edges then carry corrupt values."""
    keep = [edge for edge in map(str, circuit.edge_list) if name not in re.split("->|<", edge)]
    return Circuit.of(circuit.graph, keep)


@exercise(
    "13.5", "Report", "easy", '{"circuit", "heldout", "report"}: the path of the page that wb.report wrote.'
)
def _report(answer: Any) -> str:
    path = fields(answer, ["report"])["report"]
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise Wrong(f"report: there is no file {str(path)!r}.")
    page = Path(path).read_text(encoding="utf-8", errors="replace")
    study = _submission(answer)
    headings = [
        _text(one).strip().lower() for one in re.findall(r"<h[1-6][^>]*>(.*?)</h[1-6]>", page, re.DOTALL)
    ]
    missing = [name for name in SECTIONS if not any(name.lower() in heading for heading in headings)]
    if missing:
        raise Wrong(f"report: no section is called {', '.join(missing)}.")
    if 'data-circuit="' not in page:
        raise Wrong("report: the circuit is not drawn.")
    text = _text(re.sub(r"<(script|style|svg).*?</\1>", " ", page, flags=re.DOTALL), " ").replace("−", "-")
    for name in ("faithfulness", "low", "high"):
        value = float(study.evaluation[name][0])
        if not any(spelling in text for spelling in (f"{value:.2f}", f"{value:.3f}", f"{value:.4g}")):
            noun = "the faithfulness" if name == "faithfulness" else "the end of its interval"
            raise Wrong(f"report: {noun} on the held-out prompts ({name}) is not given, to two digits.")
    limits = re.search(r"<h2[^>]*>[^<]*Limits.*?</h2>(.*?)</section>", page, re.DOTALL | re.IGNORECASE)
    if limits is None or len(_text(limits[1], " ").split()) < 20:
        raise Wrong("report: under Limits there are only a few words. What would change your mind?")
    return "Give the page to somebody who has not seen the notebook, and ask what they believe now."


def _text(html: str, between: str = "") -> str:
    """HTML without its tags."""
    return re.sub("<[^>]*>", between, html)
