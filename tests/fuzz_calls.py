"""Calls with odd arguments: of another type, spelled otherwise, under another state of torch.

An odd value must be refused by a WorkbenchError or do no harm. The same value in another spelling (a tuple, an
array, a tensor) and the same call under another state of torch must give the same result, or be refused.
"""

import math
import random
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_world import (
    ROWS,
    WrongResult,
    agree,
    circuit,
    content,
    labels,
    model,
    pairs,
    plain,
    recipes,
    scores,
    stores,
    told,
)

import workbench as wb

# A loop of so many steps cannot be refused as impossible, and does not end.
_LOOPS = ("steps", "epochs", "draws", "resampled", "size", "retries")
# Whether a bar is shown, and where it is written: any truth value will do, and no result depends on it.
_ANY = ("progress",)


def one(rng: random.Random) -> str:
    """One call."""
    way = rng.choices(
        (_odd_arguments, _other_spelling, _other_state, _odd_tokens, _odd_sites), (8, 3, 1, 2, 2)
    )[0]
    return way(rng)


def _odd_values() -> list[Any]:
    """Thirty-odd values that fit hardly any argument."""
    return [
        None, True, False, 0, -1, 1.5, math.nan, math.inf, -math.inf, 2**40, 10**30, "", "zzz", " ", "\ud83d",
        b"bytes", [], (), {}, set(), [None], [[]], ["a", 1], {"a": 1}, object(), lambda: 0, complex(1, 2),
        date(2026, 1, 1), Path("nowhere"), range(3), slice(1, 2), iter([1]), np.array([]), np.full(3, np.nan),
        np.array([["a"]]), torch.tensor([]), torch.ones(2, 3, 4), torch.tensor([-7]), torch.full((8,), math.inf),
        torch.zeros(3, dtype=torch.bool), np.int64(2), np.float32(0.5), np.datetime64("2026-01-01"), Exception("x"),
        wb.Site.parse("z[9.9]"), wb.zero(), circuit(), pairs(), pairs().clean, stores()[0], scores(), labels(), model(),
        model, type, "z[0.1]", "a0.1->m1", "END", float("1e300"), "\x1b[31m", "a" * 10_000, [[10**30]], [True, False],
    ]  # fmt: skip


def _odd_arguments(rng: random.Random) -> str:
    recipe = rng.choice(recipes())
    names = [name for name in recipe.arguments if name not in _ANY]
    changes: dict[str, Any] = {}
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2)))):
        value = rng.choice(_odd_values())
        if name in _LOOPS and isinstance(value, int) and value > 100:
            value = -5
        changes[name] = value
    told.append(f"{recipe.name}({', '.join(f'{name}={_named(value)}' for name, value in changes.items())})")
    try:
        content(recipe.run(**changes))
    except wb.WorkbenchError as error:
        _check_message(error)
    _check_unharmed(rng)
    return "called"


def _check_message(error: Exception) -> None:
    """An error without a message helps nobody."""
    if len(str(error).strip()) < 10:
        raise WrongResult(f"an error without a message: {error!r}")


@cache
def right(number: int) -> Any:
    """What a recipe gives as it stands."""
    return content(recipes()[number].run())


def _other_spelling(rng: random.Random) -> str:
    """A sequence, a number or a path in another type that means the same."""
    number = rng.randrange(len(recipes()))
    recipe = recipes()[number]
    spellings = []
    for name, value in recipe.arguments.items():
        for label, new in _spellings(value):
            # A tuple of nodes is one that moves together.
            if (name, label) not in (("senders", "tuple"), ("receivers", "tuple")):
                spellings.append((name, label, new))
    if not spellings:
        return _odd_arguments(rng)
    name, label, new = rng.choice(spellings)
    told.append(f"{recipe.name}({name} as {label})")
    try:
        result = content(recipe.run(**{name: new}))
    except wb.WorkbenchError as error:
        _check_message(error)
        return "refused"
    if not agree(result, right(number)):
        raise WrongResult(f"{recipe.name} differs for {name} as {label}")
    return "the same"


def _spellings(value: Any) -> list[tuple[str, Any]]:
    """The same value in other types."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int):
        return [("np.int64", np.int64(value)), ("tensor", torch.tensor(value)), ("float", float(value))]
    if isinstance(value, float):
        return [
            ("np.float64", np.float64(value)),
            ("np.float32", np.float32(value)),
            ("tensor", torch.tensor(value)),
        ]
    if isinstance(value, Path):
        return [("str", str(value))]
    if isinstance(value, str):
        return [("np.str_", np.str_(value))]
    if torch.is_tensor(value):
        integers = [] if value.is_floating_point() else [("int32", value.int()), ("lists", value.tolist())]
        return [("numpy", value.numpy()), ("a view", value.clone()[:]), *integers]
    if isinstance(value, list | tuple) and value:
        spelled: list[tuple[str, Any]] = [
            ("tuple", tuple(value)),
            ("list", list(value)),
            ("iterator", iter(value)),
        ]
        if all(isinstance(each, int | str) for each in value):
            spelled.append(("numpy", np.array(value)))
        if all(type(each) is int for each in value):
            spelled.append(("tensor", torch.tensor(value)))
        return spelled
    return []


def _other_state(rng: random.Random) -> str:
    """Under another state of torch the result is the same, or the call is refused."""
    number = rng.randrange(len(recipes()))
    recipe = recipes()[number]
    expected = right(number)
    states: dict[str, Callable[[ExitStack], None]] = {
        "gradients off": lambda stack: stack.enter_context(torch.no_grad()),
        "inference mode": lambda stack: stack.enter_context(torch.inference_mode()),
        "autocast": lambda stack: stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16)),
        "float64 by default": _float64,
        "meta by default": lambda stack: stack.enter_context(torch.device("meta")),
        "deterministic": _deterministic,
    }
    state = rng.choice(list(states))
    told.append(f"{recipe.name} under {state}")
    with ExitStack() as stack:
        states[state](stack)
        try:
            result = content(recipe.run())
        except wb.WorkbenchError as error:
            _check_message(error)
            return "refused"
    if not agree(result, expected):
        raise WrongResult(f"{recipe.name} differs under {state}")
    return "the same"


def _float64(stack: ExitStack) -> None:
    torch.set_default_dtype(torch.float64)
    stack.callback(torch.set_default_dtype, torch.float32)


def _deterministic(stack: ExitStack) -> None:
    torch.use_deterministic_algorithms(True)
    stack.callback(torch.use_deterministic_algorithms, False)


def _odd_tokens(rng: random.Random) -> str:
    """Token ids in any form: the logits are those of each row alone, by transformers, or it is refused."""
    rows = [
        [0, *[rng.randrange(3, 280) for _ in range(rng.choice((1, 3, 6, 20)))]]
        for _ in range(rng.choice((1, 2, 3)))
    ]
    forms: dict[str, tuple[Callable[[], Any], bool]] = {
        # What is passed, and whether it means these rows at all.
        "lists": (lambda: rows, True),
        "tuples": (lambda: tuple(map(tuple, rows)), True),
        "arrays": (lambda: [np.array(row) for row in rows], True),
        "tensors": (lambda: [torch.tensor(row) for row in rows], True),
        "int32": (lambda: [torch.tensor(row, dtype=torch.int32) for row in rows], True),
        "Prompts": (lambda: wb.Prompts.of(rows), True),
        "Prompts with a BOS": (lambda: wb.Prompts.of(rows, bos=True), True),
        "one row": (lambda: rows[0], False),
        "floats": (lambda: [[float(token) for token in row] for row in rows], False),
        "halves": (lambda: [[token + 0.5 for token in row] for row in rows], False),
        "booleans": (lambda: [[True, False, True]], False),
        "texts and ids": (lambda: ["the red cat", rows[0]], False),
        "an id beyond the vocabulary": (lambda: [[*rows[0], 300]], False),
        "a negative id": (lambda: [[*rows[0], -1]], False),
        "a huge id": (lambda: [[*rows[0], 2**63]], False),
        "more than the context": (lambda: [[5] * 65], False),
        "an empty row": (lambda: [*rows, []], False),
        "a one-dimensional tensor": (lambda: torch.tensor(rows[0]), False),
        "a mask of zeros and ones": (lambda: {"input_ids": torch.tensor(rows[:1]), "attention_mask": torch.tensor([[0] + [1] * (len(rows[0]) - 1)])}, False),
    }  # fmt: skip
    form = rng.choice(list(forms))
    make, means_rows = forms[form]
    call = rng.choice((wb.run, wb.capture))
    told.append(f"{call.__name__}(tokens as {form}: {rows})")
    try:
        result = (
            call(model(), make())
            if call is wb.run
            else wb.capture(model(), make(), sites=["logits"], progress=False)
        )
    except wb.WorkbenchError as error:
        _check_message(error)
        if means_rows and form in ("lists", "Prompts"):
            raise WrongResult(f"{form} of token ids are refused: {error}") from None
        return "refused"
    if not means_rows and form not in (
        "one row",
        "a one-dimensional tensor",
        "floats",
        "a mask of zeros and ones",
    ):
        raise WrongResult(f"{call.__name__} takes {form}")
    expected = rows
    if form in ("one row", "a one-dimensional tensor"):
        expected = rows[:1]
    if form == "a mask of zeros and ones":
        expected = [rows[0][1:]]
    for i, row in enumerate(expected):
        logits = result.logits[i] if call is wb.run else result["logits"].prompt(i)
        with torch.no_grad():
            right = plain()(torch.tensor([row])).logits[0]
        if not agree(logits[: len(row)].numpy(), right.numpy(), 1e-4):
            raise WrongResult(f"{call.__name__} of {form}: other logits than transformers'")
    return "the same"


def _odd_sites(rng: random.Random) -> str:
    """Sites, edges, nodes and positions out of random pieces; where one is taken, its effect is checked."""
    kind = rng.choice([*wb.KINDS, "resid", "Z", ""])
    layer = rng.choice(("0", "1", "2", "-1", "01", "x", "1e1", "", "٣"))
    unit = rng.choice(("", ".1", ".4", ":3", ":48", ".-1", ".", ":"))
    pos = rng.choice(("", "@END", "@2", "@99", "@-1", "@X", "@", "@2<-1", "@1<-2", "@<-0"))
    text = rng.choice(
        (f"{kind}[{layer}{unit}]{pos}", f"{kind}{pos}", f"a{layer}{unit}->m{layer}{pos}", f"{kind}[{layer}")
    )
    value = rng.choice(
        (wb.zero(), wb.constant(0.5), wb.scale(2.0), wb.add(torch.ones(8)), wb.from_store(stores()[1]))
    )
    told.append(f"effects(sites=[{text!r}], value={value.describe()})")
    try:
        effects = wb.effects(model(), pairs(), sites=[text], value=value, progress=False)
    except wb.WorkbenchError as error:
        _check_message(error)
        return "refused"
    base = _pair_logit_diff(wb.run(model(), pairs().clean).logits)
    # A kind without a layer is every one of its sites.
    for j, name in enumerate(effects["site"].values):
        edits = {wb.Site.parse(str(name)): value}
        edited = _pair_logit_diff(wb.run(model(), pairs().clean, edits=edits, other=pairs().corrupt).logits)
        shown, expected = effects.values[:, j], edited - base
        if not agree(np.nan_to_num(shown), expected, 1e-3) and np.abs(shown - expected).max() > 1e-4:
            raise WrongResult(f"effects and run differ at {name} of {text}: {shown} and {expected}")
    return "the same"


def _pair_logit_diff(logits: torch.Tensor) -> np.ndarray:
    """[pair]: the logit difference of the two pairs at their ends."""
    right, wrong = pairs().answers[:, 0, 0], pairs().wrong[:, 0, 0]
    end = logits[torch.arange(2), [len(row) - 1 for row in ROWS]]
    return (end[torch.arange(2), right] - end[torch.arange(2), wrong]).numpy()


@cache
def _right_logits() -> torch.Tensor:
    with torch.no_grad():
        return plain()(torch.tensor([ROWS[0]])).logits[0]


def _check_unharmed(rng: random.Random) -> None:
    """After whatever was called the model is as it was, and so is torch."""
    if not torch.is_grad_enabled() or torch.get_default_dtype() != torch.float32:
        torch.set_grad_enabled(True)
        raise WrongResult("the state of torch was changed")
    if rng.random() < 0.1:
        logits = wb.run(model(), [ROWS[0]]).logits[0]
        if not agree(logits.numpy(), _right_logits().numpy(), 1e-4):
            raise WrongResult("the model gives other logits than before")


def _named(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return f"{type(value).__name__} {text[:60]}"
