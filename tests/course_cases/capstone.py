"""Lesson 13: a study of direct attributes ("the hat is pink and the pen is blue . the pen is"), and what can
be missing in one.
"""

import itertools
import random
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch

import workbench as wb
from workbench.course import fixtures
from workbench.tasks.grammar import COLOURS, OBJECTS


@lru_cache(maxsize=1)
def sets():
    rng, rows = random.Random(1), []
    for (a, b), _ in zip(itertools.permutations(OBJECTS, 2), range(96), strict=False):
        c, d = rng.sample(COLOURS, 2)
        told = "the {} is {} and the {} is {} . the {} is"
        rows.append((told.format(a, c, b, d, a), told.format(a, d, b, c, a), c, d))
    pairs = wb.PromptPairs.from_dataframe(
        fixtures.model(), pd.DataFrame(rows, columns=["clean", "corrupt", "answer", "wrong"])
    )
    return pairs.select(range(48)), pairs.select(range(48, 96))


@lru_cache(maxsize=1)
def study():
    found, heldout = sets()
    other = [wb.from_store(wb.capture_pairs(fixtures.model(), pairs, progress=False)[1]) for pairs in sets()]
    scores = wb.score_edges(fixtures.model(), found, value=other[0], progress=False)
    circuit = wb.find_circuit(scores, n_edges=30)
    made = wb.evaluate(
        circuit, fixtures.model(), heldout, value=other[1], checks=("random", "complement"), progress=False
    )
    zero = wb.evaluate(circuit, fixtures.model(), heldout, value=wb.zero(), checks=(), progress=False)
    numbers = {name: float(made[name][0]) for name in ("faithfulness", "low", "high", "random", "complement")}
    members = [name for name in circuit.nodes if name not in ("input", "logits")]
    rest = [circuit - circuit.restricted(readers=name) - circuit.restricted(writers=name) for name in members]
    left = wb.evaluate(rest, fixtures.model(), heldout, value=other[1], checks=(), progress=False)[
        "m_circuit"
    ].mean("example")
    full, empty = float(made["m_full"].mean()), float(made["m_empty"].mean())
    cost = dict(zip(members, numbers["faithfulness"] - (left.values - empty) / (full - empty), strict=True))
    needed = [name for name in members if cost[name] >= 0.1]
    return {"found": found, "heldout": heldout, "circuit": circuit, "zero": float(zero["faithfulness"][0]), "cost": cost} | numbers | {"needed": needed}  # fmt: skip


def part(*keys, **changed):
    return {key: study()[key] for key in keys} | changed


def prompts(**changed):
    return part("found", "heldout", **changed)


def score(**changed):
    return part("circuit", "heldout", "faithfulness", "low", "high", **changed)


def controls(**changed):
    return part("circuit", "heldout", "random", "complement", "zero", **changed)


def needed(chosen):
    return part("circuit", "heldout", needed=chosen)


def page(*, without="", limits="word " * 30, told=None):
    made = study()
    told = told or "{faithfulness:.3f}, {low:.3f} to {high:.3f}".format(**made)
    items = {
        "Question": "What?",
        "Prompts": "These.",
        "Circuit": made["circuit"],
        "Controls": told,
        "Limits": limits,
    }
    sections = [(name, item) for name, item in items.items() if name != without]
    path = wb.report(sections, Path(tempfile.mkdtemp()) / "page.html", title="Study")
    return part("circuit", "heldout", report=path)


def same_answer():
    """Prompts whose answer is always red."""
    found, _ = sets()
    vocabulary = fixtures.model().tokenizer.get_vocab()
    answers = found.answers * 0 + vocabulary["red"]
    # Where red was wrong, another colour is.
    wrong = found.wrong.where(found.wrong != vocabulary["red"], torch.tensor(vocabulary["blue"]))
    return replace(found, answers=answers, wrong=wrong)


CASES = {
    "13.1": (
        prompts,
        [
            (lambda: prompts(found=study()["heldout"]), "are in both sets"),
            (lambda: prompts(found=fixtures.pairs("ioi", 64)), "Write some of your own"),
            (lambda: prompts(found=study()["found"].select(range(8))), "24 to 200 pairs"),
            (lambda: prompts(found=same_answer()), "one word is right"),
            (
                lambda: prompts(
                    found=replace(
                        study()["found"], answers=study()["found"].wrong, wrong=study()["found"].answers
                    )
                ),
                "no behaviour",
            ),
            (lambda: prompts(found=study()["found"].select([0] * 12 + [*range(12, 24)])), "occur twice"),
            (lambda: prompts(found=["a prompt"]), "PromptPairs are wanted"),
        ],
    ),
    "13.2": (
        score,
        [
            (lambda: score(heldout=study()["found"]), "nothing is held out"),
            (lambda: score(circuit=wb.Circuit.full(fixtures.model())), "of all edges"),
            (lambda: score(circuit=wb.Circuit.empty(fixtures.model())), "keeps less than 80%"),
            (
                lambda: score(circuit=wb.Circuit.of(study()["circuit"].graph, study()["circuit"].edges)),
                "which prompts it was found on",
            ),
            (lambda: score(heldout=fixtures.pairs("ioi", 64, split="heldout")), "Write some of your own"),
            (lambda: score(faithfulness=100 * study()["faithfulness"]), "in percent"),
            (lambda: score(faithfulness=study()["faithfulness"] - 0.05), "measured again"),
            (lambda: score(low=study()["high"] + 0.1), "between low and high"),
            (lambda: score(low=study()["faithfulness"], high=study()["faithfulness"]), "without width"),
            (lambda: score(low=study()["low"] - 1), "bootstrap"),
            (lambda: score(low="much"), "is not a number"),
        ],
    ),
    "13.3": (
        controls,
        [
            (lambda: controls(random=study()["faithfulness"]), "random: wanted is"),
            (lambda: controls(zero=study()["faithfulness"]), "with corrupt values"),
            (lambda: controls(complement=1 - study()["faithfulness"] + 0.5), "complement: wanted is"),
            (lambda: controls(random=0, complement=0, zero=0), "exactly 0 is hardly ever measured"),
            (lambda: part("circuit", "heldout", "random"), "keys"),
        ],
    ),
    "13.4": (
        lambda: needed(study()["needed"]),
        [
            (lambda: needed(study()["needed"][1:]), "1 more cost"),
            (lambda: needed([*study()["cost"]]), "only"),
            (lambda: needed(["input"]), "no head or MLP of the circuit"),
            (lambda: needed([]), "more cost"),
        ],
    ),
    "13.5": (
        page,
        [
            (lambda: page(without="Limits"), "no section is called Limits"),
            (lambda: page(limits="None."), "a few words"),
            (lambda: page(told="It is very faithful."), "is not given"),
            (lambda: part("circuit", "heldout", report="/no/such/page.html"), "there is no file"),
        ],
    ),
}
