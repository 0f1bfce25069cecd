"""Checkers of lesson 6: path patching, and which input of a head matters."""

from functools import lru_cache
from typing import Any

import numpy as np

from workbench.course import fixtures as bench
from workbench.course.exercises import Wrong, called, exercise, fields, number, one_name, shown, table
from workbench.engine.values import from_store
from workbench.errors import WorkbenchError
from workbench.interventions.effects import effects
from workbench.interventions.paths import path_effects
from workbench.planted_models.planted import planted

N = 64
PORTS = ("q", "k", "v")
PLACES = ("IO", "S1", "S2", "END")


@lru_cache(maxsize=128)
def _path(path: str, mlps: str = "frozen") -> np.ndarray:
    """[example]: what one path of `tiny` changes when it carries the corrupt value."""
    other = from_store(bench.stores("ioi", N)[1])
    return path_effects(
        bench.model(), bench.pairs("ioi", N), paths=[path], value=other, mlps=mlps, progress=False
    ).values[:, 0]  # fmt: skip


@lru_cache(maxsize=32)
def _total(site: str) -> np.ndarray:
    """[example]: what a site of `tiny` changes when it carries the corrupt value."""
    other = from_store(bench.stores("ioi", N)[1])
    return effects(bench.model(), bench.pairs("ioi", N), sites=[site], value=other, progress=False).values[
        :, 0
    ]


@exercise(
    "6.1",
    "The direct share",
    "easy",
    "one number: the share of the head's total effect that its direct path has.",
)
def _share(answer: Any) -> str:
    each, whole = _path("a3.7->logits"), _total("z[3.7]")
    direct, total = float(each.mean()), float(whole.mean())
    got = number(answer)
    if np.isclose(got, direct / total, atol=3e-3):
        return "The rest goes through the last MLP, which amplifies what the head writes."
    if np.isclose(got, (each / whole).mean(), atol=3e-3):
        raise Wrong("this is the mean of each prompt's share. Take the two means first, then one ratio.")
    if np.isclose(got, 1, atol=2e-3):
        raise Wrong("with recomputed MLPs the path is the whole effect. What is meant is the edge alone.")
    if np.isclose(got, direct, atol=2e-2):
        raise Wrong("this is an effect in logits; what share of the total is it?")
    if np.isclose(got, 1 - direct / total, atol=2e-3):
        raise Wrong("this is the share of all other ways.")
    if np.isclose(got, total / direct, atol=2e-2):
        raise Wrong("this is the total in units of the direct effect: turn the fraction round.")
    raise Wrong("it is not that number. Take means over the prompts, then one ratio.")


@exercise("6.2", "An edge by hand", "medium", "a function from a layer and a head to effects [example].")
def _by_hand(answer: Any) -> str:
    for layer, head in ((2, 6), (1, 0), (3, 7)):
        right = _path(f"a{layer}.{head}->logits")
        got = table(called(answer, layer, head), (N,), "example")
        if np.allclose(got, right, atol=2e-3):
            continue
        name = f"a{layer}.{head}"
        if np.allclose(got, -right, atol=2e-3):
            raise Wrong("the sign is turned round: patched minus clean is wanted.")
        if np.allclose(got, _total(f"z[{layer}.{head}]"), atol=2e-3):
            raise Wrong(
                f"for {name} this is the total effect: everything after the head still reacts. What must be held?"
            )
        if np.allclose(got, _path(f"{name}->logits", "recomputed"), atol=2e-3):
            raise Wrong(f"for {name} the later heads are held and the later MLPs still react.")
        if np.isclose(got, 0).all():
            raise Wrong(f"for {name} nothing changes: was the head itself held at its clean value?")
        raise Wrong(
            f"for {name} your effects are off by up to {np.abs(got - right).max():.2g}. Is every later head and MLP held?"
        )
    return "That is all that path patching is: one thing moves, the rest is held, and one reader hears of it."


@exercise("6.3", "Into the mover", "medium", "a reader at one position, as 'a2.0<k>@S1'.")
def _into(answer: Any) -> str:
    if not isinstance(answer, str):
        raise Wrong(f"a reader as text is wanted, such as 'a2.0<k>@S1', not {shown(answer)}.")
    reader, _, place = answer.replace(" ", "").partition("@")
    if reader not in [f"a3.7<{port}>" for port in PORTS]:
        raise Wrong(
            f"{shown(reader)} is not an input of head a3.7. Its inputs are a3.7<q>, a3.7<k> and a3.7<v>."
        )
    if place not in PLACES:
        raise Wrong(f"write the position after an @, one of {', '.join(PLACES)}.")
    change = {f"a3.7<{port}>@{at}": float(_path(f"m0->a3.7<{port}>@{at}->logits", "recomputed").mean())
              for port in PORTS for at in PLACES}  # fmt: skip
    mine = change[f"{reader}@{place}"]
    if mine > min(change.values()):
        raise Wrong(
            f"through {reader}@{place} the first MLP changes the logit difference by {mine:.2f}; one input carries more."
        )
    return (
        f"It changes the logit difference by {mine:.2f}: the head copies, with a minus, what it finds there."
    )


@exercise("6.4", "Composition", "medium", 'a table {"q": head, "k": head, "v": head}.')
def _composition(answer: Any) -> str:
    made = planted("compositions", seed=3, n=24)
    heads = made.heads
    right = {port: heads[f"feed-{port}"] for port in PORTS}
    for port, given in fields(answer, PORTS).items():
        head = one_name(given, bench.heads(made.model), "head of this model")
        if head == heads["target"]:
            raise Wrong(f"{head} is the head that is fed.")
        if head != right[port]:
            raise Wrong(f"{head} does not feed the {port} of {heads['target']}: that path changes nothing.")
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
