"""Checkers of lesson 6: path patching, and which input of a head matters."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np

from workbench.course import fixtures
from workbench.course.exercises import (
    Wrong,
    called,
    exercise,
    explain,
    fields,
    number,
    one_name,
    shown,
    table,
)
from workbench.engine.values import from_store
from workbench.errors import WorkbenchError
from workbench.interventions.effects import effects
from workbench.interventions.paths import path_effects
from workbench.planted_models.planted import planted

N = 64
PORTS = ("q", "k", "v")
POSITIONS = ("IO", "S1", "S2", "END")


@lru_cache(maxsize=128)
def _path(path: str, mlps: Literal["frozen", "recomputed"] = "frozen") -> np.ndarray:
    """[example]: what one path of `tiny` changes when it carries the corrupt value."""
    model, pairs = fixtures.model(), fixtures.pairs("ioi", N)
    value = from_store(fixtures.stores("ioi", N)[1])
    return path_effects(model, pairs, paths=[path], value=value, mlps=mlps, progress=False).values[:, 0]


@lru_cache(maxsize=32)
def _total(site: str) -> np.ndarray:
    """[example]: what a site of `tiny` changes when it carries the corrupt value."""
    model, pairs = fixtures.model(), fixtures.pairs("ioi", N)
    value = from_store(fixtures.stores("ioi", N)[1])
    return effects(model, pairs, sites=[site], value=value, progress=False).values[:, 0]


@exercise(
    "6.1",
    "The direct share",
    "easy",
    "one number: the share of the head's total effect that its direct path has.",
)
def _direct_share(answer: Any) -> str:
    direct, total = _path("a3.7->logits"), _total("z[3.7]")
    share = float(direct.mean()) / float(total.mean())
    value = number(answer)
    # The mean of ratios differs by more than that, and must not pass for the ratio of means.
    if np.isclose(value, share, atol=3e-3):
        return "The rest goes through the last MLP, which amplifies what the head writes."
    mistakes = [
        (
            (direct / total).mean(),
            "this is the mean of each prompt's share. Take the two means first, then one ratio.",
        ),
        (1.0, "with recomputed MLPs the path is the whole effect. What is meant is the edge alone."),
        (1 - share, "this is the share of all other paths."),
    ]
    explain(value, mistakes, atol=3e-3)
    mistakes = [
        (float(direct.mean()), "this is an effect in logits; what share of the total is it?"),
        (1 / share, "this is the total in units of the direct effect: take the inverse."),
    ]
    explain(value, mistakes, atol=2e-2)
    raise Wrong("it is not that number. Take means over the prompts, then one ratio.")


@exercise("6.2", "An edge by hand", "medium", "a function from a layer and a head to effects [example].")
def _by_hand(answer: Any) -> str:
    # An early head, one in between and one of the last layer, which no later head can react to.
    for layer, head in ((2, 6), (1, 0), (3, 7)):
        name = f"a{layer}.{head}"
        right = _path(f"{name}->logits")
        values = table(called(answer, layer, head), (N,), "example")
        if np.allclose(values, right, atol=2e-3):
            continue
        mistakes = [
            (-right, "the sign is reversed: patched minus clean is wanted."),
            (
                _total(f"z[{layer}.{head}]"),
                f"for {name} this is the total effect: everything after the head still reacts. What must be "
                "held?",
            ),
            (
                _path(f"{name}->logits", "recomputed"),
                f"for {name} the later heads are held and the later MLPs still react.",
            ),
        ]
        explain(values, mistakes, atol=2e-3)
        if np.isclose(values, 0).all():
            raise Wrong(f"for {name} nothing changes: was the head itself held at its clean value?")
        off = np.abs(values - right).max()
        raise Wrong(f"for {name} your effects are off by up to {off:.2g}. Is every later head and MLP held?")
    return (
        "That is all that path patching is: one thing moves, the rest is held, "
        "and one reader sees the change."
    )


@exercise("6.3", "Into the mover", "medium", "a reader at one position, as 'a2.0<k>@S1'.")
def _into(answer: Any) -> str:
    if not isinstance(answer, str):
        raise Wrong(f"a reader as text is wanted, such as 'a2.0<k>@S1', not {shown(answer)}.")
    reader, _, position = answer.replace(" ", "").partition("@")
    if reader not in [f"a3.7<{port}>" for port in PORTS]:
        raise Wrong(
            f"{shown(reader)} is not an input of head a3.7. Its inputs are a3.7<q>, a3.7<k> and a3.7<v>."
        )
    if position not in POSITIONS:
        raise Wrong(f"write the position after an @, one of {', '.join(POSITIONS)}.")
    changes = {}
    for port in PORTS:
        for pos in POSITIONS:
            into = f"a3.7<{port}>@{pos}"
            changes[into] = float(_path(f"m0->{into}->logits", "recomputed").mean())
    change = changes[f"{reader}@{position}"]
    if change > min(changes.values()):
        raise Wrong(
            f"through {reader}@{position} the first MLP changes the logit difference by {change:.2f}; "
            "another input carries more."
        )
    return (
        f"It changes the logit difference by {change:.2f}: the head copies, with a minus sign, what it finds "
        "there."
    )


@exercise("6.4", "Composition", "medium", 'a table {"q": head, "k": head, "v": head}.')
def _composition(answer: Any) -> str:
    model = planted("compositions", seed=3, n=24)
    target = model.heads["target"]
    for port, chosen in fields(answer, PORTS).items():
        head = one_name(chosen, fixtures.heads(model.model), "head of this model")
        if head == target:
            raise Wrong(f"{head} is the head that is fed.")
        if head != model.heads[f"feed-{port}"]:
            raise Wrong(f"{head} does not feed the {port} of {target}: that path changes nothing.")
    return "Patching the heads alone could not tell: each of the three is missed just as much."


@exercise(
    "6.5",
    "A long path",
    "hard",
    "one path as text, as 'input->a0.0->a2.0<k>->logits', with three nodes in between.",
)
def _long(answer: Any) -> str:
    if not isinstance(answer, str):
        raise Wrong(f"a path as text is wanted, not {shown(answer)}.")
    nodes = [node.strip() for node in answer.split("->")]
    if nodes[0] != "input" or nodes[-1] != "logits":
        raise Wrong("the path must lead from input to logits.")
    if len(nodes) < 5:
        raise Wrong(f"it passes {len(nodes) - 2} nodes, and three are wanted.")
    try:
        share = float(_path("->".join(nodes)).mean() / _whole())
    except WorkbenchError as error:
        raise Wrong(str(error)) from None
    if share < 0.3:
        raise Wrong(f"it carries {share:.0%} of the difference between the runs. 30 % are wanted.")
    return f"It carries {share:.0%} by itself, with every other head and MLP held."


@lru_cache(maxsize=1)
def _whole() -> float:
    """The whole difference between the runs: what the corrupt input changes."""
    return float(_total("resid_pre[0]").mean())
