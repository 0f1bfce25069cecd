"""A script that calls discovery with inputs of the wrong kind, as a caller does who has no type checker.

`test_wrong_inputs.py` runs it without the checker of the tests: it prints one JSON object, call -> what came of it.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from families import build, make_pairs, model_of, pairs_and_stores

import workbench as wb

MODEL = model_of("gpt2")
PAIRS, CLEAN, CORRUPT = pairs_and_stores("gpt2")
VALUE = wb.from_store(CORRUPT)
SCORES = wb.score_edges(MODEL, PAIRS, value=VALUE)
NODES = wb.score_nodes(MODEL, PAIRS, value=VALUE)
KEPT = wb.score_edges(MODEL, PAIRS, value=VALUE, keep=("example",))
FULL = wb.Circuit.full(MODEL)
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "score_edges": (wb.score_edges, {}),
    "score_nodes": (wb.score_nodes, {}),
    "acdc": (wb.acdc, {"threshold": 1.0}),
    "learn_circuit": (wb.learn_circuit, {"n_edges": 5, "steps": 2}),
    "evaluate": (lambda *a, **k: wb.evaluate(FULL, *a, **k), {"checks": ()}),
    "minimality": (
        lambda *a, **k: wb.minimality(FULL, *a, **{n: v for n, v in k.items() if n != "progress"}),
        {},
    ),
    "faithfulness_curve": (lambda *a, **k: wb.faithfulness_curve(SCORES, *a, **k), {}),
}
NO_SEEDS = {"seed": (-1, 1.5, "a", None)}
NO_PLACES = {"positions": ([], ["rest"], [-1], [True], [1.5], [None], [""], [99], ["S2"], 3.5, object())}
WRONG: dict[str, dict[str, tuple[Any, ...]]] = {
    "*": {"value": ("zero", None, [VALUE]), "metric": ("logits", None, 3), "budget": (0, -1, True, 1.5, "1GB", float("nan"))},
    "score_edges": {
        **NO_SEEDS, **NO_PLACES, "method": ("epa", None, ["eap"]), "grid": ("mid", None), "steps": (0, True, 1.5, "3"),
        "keep": ("example", ("x",)), "neurons": ("0", 1.0, [True], None, [7], [-1]),
    },
    "score_nodes": {
        "method": ("epa", None, ["eap"]), "keep": (("x",), ("pos",)), "grid": ("mid", None), "steps": (0, 1.5, "3"),
    },
    "acdc": {
        **NO_SEEDS, **NO_PLACES, "threshold": (-1, True, "1", float("nan"), float("inf")), "order": ("late", None, 3),
        "at_once": (0, True, 1.5, "3"),
    },
    "learn_circuit": {
        **NO_SEEDS, **NO_PLACES, "n_edges": (0, -1, 10**9, True, 1.5, "5"), "n_nodes": (3,), "steps": (0, True, 1.5),
        "batch": (0, True, 1.5), "lr": (0, -1, True, "a", None, float("nan")),
    },
    "evaluate": {**NO_SEEDS, "level": (0, 1, 2, True, "a", None, float("nan")), "checks": (("complet",), (None,), "all")},
    "minimality": {**NO_SEEDS, "level": (0, 1, 2, True, "a", None, float("nan"))},
    "faithfulness_curve": {
        "level": (0, 2, "a", None), "by": ("size", None), "sizes": ([], [2.0], [-1], ["a"], [True], "ab", 7),
    },
}  # fmt: skip
found: dict[str, str] = {}


def attempt(name: str, call: Callable[[], Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except wb.WorkbenchError as error:
        found[name] = f"refused: {error}"
    except Exception as error:
        found[name] = f"raw {type(error).__name__}: {error}"
    else:
        found[name] = "ran"


def main() -> None:
    train = build("gpt2").train()
    uneven = wb.PromptPairs(
        wb.Prompts.of([[1, 2]]), wb.Prompts.of([[1, 2, 3]]), PAIRS.answers[:1], PAIRS.wrong[:1]
    )
    beyond = wb.PromptPairs(
        wb.Prompts.of([[1, 99]]), wb.Prompts.of([[1, 98]]), PAIRS.answers[:1], PAIRS.wrong[:1]
    )
    for name, (call, usual) in CALLS.items():
        for argument, wrong in {**WRONG["*"], **WRONG[name]}.items():
            for given in wrong:
                how = {"value": VALUE, "progress": False} | usual | {argument: given}
                attempt(f"{name}({argument}={given!r})", lambda call=call, how=how: call(MODEL, PAIRS, **how))
        how = {"value": wb.zero(), "progress": False} | usual
        for what, pairs in {
            "none": None,
            "list": [1],
            "uneven": uneven,
            "long": make_pairs((40,)),
            "vocab": beyond,
        }.items():
            attempt(
                f"{name}({what} pairs)", lambda call=call, how=how, pairs=pairs: call(MODEL, pairs, **how)
            )
        for what, model in {"none": None, "str": "tiny", "train": train}.items():
            attempt(
                f"{name}({what} model)", lambda call=call, how=how, model=model: call(model, PAIRS, **how)
            )
        for what, store in {"other model": pairs_and_stores("llama")[2], "own": CLEAN}.items():
            other = how | {"value": wb.from_store(store)}
            attempt(f"{name}({what} store)", lambda call=call, other=other: call(MODEL, PAIRS, **other))
    attention = model_of("native-attn-only")
    attempt("score_edges(no MLPs)", lambda: wb.score_edges(attention, PAIRS, value=wb.zero(), neurons=True))
    attempt(
        "score_edges(neurons on hooks)",
        lambda: wb.score_edges(MODEL, PAIRS, value=wb.scale(0.5), neurons=[0]),
    )
    attempt(
        "score_nodes(normalized)",
        lambda: wb.score_nodes(MODEL, PAIRS, value=VALUE, method="exact", normalized=True),
    )
    for what in ("5", True, 1.5, -1, 10**9, None):
        attempt(f"find_circuit(n_edges={what!r})", lambda what=what: wb.find_circuit(SCORES, n_edges=what))
        attempt(f"find_circuit(n_nodes={what!r})", lambda what=what: wb.find_circuit(NODES, n_nodes=what))
    for what in ("a", True, float("nan")):
        attempt(
            f"find_circuit(threshold={what!r})", lambda what=what: wb.find_circuit(SCORES, threshold=what)
        )
        how = {"min_faithfulness": what, "model": MODEL, "pairs": PAIRS}
        attempt(f"find_circuit(min_faithfulness={what!r})", lambda how=how: wb.find_circuit(SCORES, **how))
    for what, scores in {
        "None": None,
        "numpy": np.zeros((2, 2)),
        "text": SCORES.astype(str),
        "set": SCORES.to_dataset(),
    }.items():
        attempt(f"find_circuit({what})", lambda scores=scores: wb.find_circuit(scores, n_edges=2))
        attempt(f"find_circuit({what} nodes)", lambda scores=scores: wb.find_circuit(scores, n_nodes=2))
        attempt(
            f"acdc({what})",
            lambda scores=scores: wb.acdc(MODEL, PAIRS, value=VALUE, order="scores", scores=scores),
        )
        attempt(
            f"faithfulness_curve({what})",
            lambda scores=scores: wb.faithfulness_curve(scores, MODEL, PAIRS, value=VALUE),
        )
        attempt(f"stability({what})", lambda scores=scores: wb.stability(scores, find=lambda each: FULL))
    for what in (1.5, "3", None, 0, True):
        attempt(
            f"stability(draws={what!r})",
            lambda what=what: wb.stability(KEPT, find=lambda each: FULL, draws=what),
        )
    attempt("stability(find=3)", lambda: wb.stability(KEPT, find=lambda each: 3))
    attempt(
        "faithfulness_curve(values)",
        lambda: wb.faithfulness_curve(SCORES, MODEL, PAIRS, value={"zero": wb.zero()}),
    )
    for what in (None, [], "x", [None], 3):
        attempt(f"evaluate({what!r})", lambda what=what: wb.evaluate(what, MODEL, PAIRS, value=VALUE))
        attempt(f"minimality({what!r})", lambda what=what: wb.minimality(what, MODEL, PAIRS, value=VALUE))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
