"""Inputs of the wrong kind, as by a caller without a type checker: each is refused with a message, never a
raw error.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from families import build, make_pairs, model_of, pairs_and_stores

import workbench as wb


def attempt_all() -> dict[str, str]:
    """What came of every call: refused, ran, or an error that is not ours."""
    outcomes: dict[str, str] = {}
    base_model = model_of("gpt2")
    usual_pairs, clean, corrupt = pairs_and_stores("gpt2")
    value = wb.from_store(corrupt)
    scores = wb.score_edges(base_model, usual_pairs, value=value)
    nodes = wb.score_nodes(base_model, usual_pairs, value=value)
    kept = wb.score_edges(base_model, usual_pairs, value=value, keep=("example",))
    full = wb.Circuit.full(base_model)
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "score_edges": (wb.score_edges, {}),
        "score_nodes": (wb.score_nodes, {}),
        "acdc": (wb.acdc, {"threshold": 1.0}),
        "learn_circuit": (wb.learn_circuit, {"n_edges": 5, "steps": 2}),
        "evaluate": (lambda *a, **k: wb.evaluate(full, *a, **k), {"checks": ()}),
        "minimality": (
            lambda *a, **k: wb.minimality(full, *a, **{n: v for n, v in k.items() if n != "progress"}),
            {},
        ),
        "faithfulness_curve": (lambda *a, **k: wb.faithfulness_curve(scores, *a, **k), {}),
    }
    no_seeds = {"seed": (-1, 1.5, "a", None)}
    no_places = {"positions": ([], ["rest"], [-1], [True], [1.5], [None], [""], [99], ["S2"], 3.5, object())}
    wrong_arguments: dict[str, dict[str, tuple[Any, ...]]] = {
        "*": {"value": ("zer", "clean", "constant:nan", "optimal", [value]), "metric": ("logits", 3), "budget": (0, -1, True, 1.5, "1GB", float("nan"))},
        "score_edges": {
            **no_seeds, **no_places, "method": ("epa", None, ["eap"]), "grid": ("mid", None), "steps": (0, True, 1.5, "3"),
            "keep": ("example", ("x",)), "neurons": ("0", 1.0, [True], None, [7], [-1]),
        },
        "score_nodes": {
            "method": ("epa", None, ["eap"]), "keep": (("x",), ("pos",)), "grid": ("mid", None), "steps": (0, 1.5, "3"),
        },
        "acdc": {
            **no_seeds, **no_places, "threshold": (-1, True, "1", float("nan"), float("inf")), "order": ("late", None, 3),
            "at_once": (0, True, 1.5, "3"),
        },
        "learn_circuit": {
            **no_seeds, **no_places, "n_edges": (0, -1, 10**9, True, 1.5, "5"), "n_nodes": (3,), "steps": (0, True, 1.5),
            "batch": (0, True, 1.5), "lr": (0, -1, True, "a", None, float("nan")),
        },
        "evaluate": {**no_seeds, "level": (0, 1, 2, True, "a", None, float("nan")), "checks": (("complet",), (None,), "all")},
        "minimality": {**no_seeds, "level": (0, 1, 2, True, "a", None, float("nan"))},
        "faithfulness_curve": {
            "level": (0, 2, "a", None), "by": ("size", None), "sizes": ([], [2.0], [-1], ["a"], [True], "ab", 7),
        },
    }  # fmt: skip

    def attempt(name: str, call: Callable[[], Any]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call()
        except wb.WorkbenchError as error:
            outcomes[name] = f"refused: {error}"
        except Exception as error:
            outcomes[name] = f"raw {type(error).__name__}: {error}"
        else:
            outcomes[name] = "ran"

    train = build("gpt2").train()
    uneven = wb.PromptPairs(
        wb.Prompts.of([[1, 2]]), wb.Prompts.of([[1, 2, 3]]), usual_pairs.answers[:1], usual_pairs.wrong[:1]
    )
    beyond = wb.PromptPairs(
        wb.Prompts.of([[1, 99]]), wb.Prompts.of([[1, 98]]), usual_pairs.answers[:1], usual_pairs.wrong[:1]
    )
    for name, (call, usual) in calls.items():
        for argument, wrong in {**wrong_arguments["*"], **wrong_arguments[name]}.items():
            for wrong_input in wrong:
                arguments = {"value": value, "progress": False} | usual | {argument: wrong_input}
                attempt(
                    f"{name}({argument}={wrong_input!r})",
                    lambda call=call, arguments=arguments: call(base_model, usual_pairs, **arguments),
                )
        arguments = {"value": wb.zero(), "progress": False} | usual
        for name_of_input, pairs in {
            "none": None,
            "list": [1],
            "uneven": uneven,
            "long": make_pairs((40,)),
            "vocab": beyond,
        }.items():
            attempt(
                f"{name}({name_of_input} pairs)",
                lambda call=call, arguments=arguments, pairs=pairs: call(base_model, pairs, **arguments),
            )
        for name_of_input, model in {"none": None, "str": "tiny", "train": train}.items():
            attempt(
                f"{name}({name_of_input} model)",
                lambda call=call, arguments=arguments, model=model: call(model, usual_pairs, **arguments),
            )
        for name_of_input, store in {"other model": pairs_and_stores("llama")[2], "own": clean}.items():
            other = arguments | {"value": wb.from_store(store)}
            attempt(
                f"{name}({name_of_input} store)",
                lambda call=call, other=other: call(base_model, usual_pairs, **other),
            )
    attention = model_of("native-attn-only")
    attempt(
        "score_edges(no MLPs)", lambda: wb.score_edges(attention, usual_pairs, value=wb.zero(), neurons=True)
    )
    attempt(
        "score_edges(neurons on hooks)",
        lambda: wb.score_edges(base_model, usual_pairs, value=wb.scale(0.5), neurons=[0]),
    )
    attempt(
        "score_nodes(normalized)",
        lambda: wb.score_nodes(base_model, usual_pairs, value=value, method="exact", normalized=True),
    )
    for name_of_input in ("5", True, 1.5, -1, 10**9, None):
        attempt(
            f"find_circuit(n_edges={name_of_input!r})",
            lambda name_of_input=name_of_input: wb.find_circuit(scores, n_edges=name_of_input),
        )
        attempt(
            f"find_circuit(n_nodes={name_of_input!r})",
            lambda name_of_input=name_of_input: wb.find_circuit(nodes, n_nodes=name_of_input),
        )
    for name_of_input in ("a", True, float("nan")):
        attempt(
            f"find_circuit(threshold={name_of_input!r})",
            lambda name_of_input=name_of_input: wb.find_circuit(scores, threshold=name_of_input),
        )
        arguments = {"min_faithfulness": name_of_input, "model": base_model, "pairs": usual_pairs}
        attempt(
            f"find_circuit(min_faithfulness={name_of_input!r})",
            lambda arguments=arguments: wb.find_circuit(scores, **arguments),
        )
    for name_of_input, no_scores in {
        "None": None,
        "numpy": np.zeros((2, 2)),
        "text": scores.astype(str),
        "set": scores.to_dataset(),
    }.items():
        attempt(
            f"find_circuit({name_of_input})",
            lambda no_scores=no_scores: wb.find_circuit(no_scores, n_edges=2),
        )
        attempt(
            f"find_circuit({name_of_input} nodes)",
            lambda no_scores=no_scores: wb.find_circuit(no_scores, n_nodes=2),
        )
        attempt(
            f"acdc({name_of_input})",
            lambda no_scores=no_scores: wb.acdc(
                base_model, usual_pairs, value=value, order="scores", scores=no_scores
            ),
        )
        attempt(
            f"faithfulness_curve({name_of_input})",
            lambda no_scores=no_scores: wb.faithfulness_curve(
                no_scores, base_model, usual_pairs, value=value
            ),
        )
        attempt(
            f"stability({name_of_input})",
            lambda no_scores=no_scores: wb.stability(no_scores, find=lambda each: full),
        )
    for name_of_input in (1.5, "3", None, 0, True):
        attempt(
            f"stability(draws={name_of_input!r})",
            lambda name_of_input=name_of_input: wb.stability(
                kept, find=lambda each: full, draws=name_of_input
            ),
        )
    attempt("stability(find=3)", lambda: wb.stability(kept, find=lambda each: 3))
    attempt(
        "faithfulness_curve(values)",
        lambda: wb.faithfulness_curve(scores, base_model, usual_pairs, value={"zero": wb.zero()}),
    )
    for name_of_input in (None, [], "x", [None], 3):
        attempt(
            f"evaluate({name_of_input!r})",
            lambda name_of_input=name_of_input: wb.evaluate(
                name_of_input, base_model, usual_pairs, value=value
            ),
        )
        attempt(
            f"minimality({name_of_input!r})",
            lambda name_of_input=name_of_input: wb.minimality(
                name_of_input, base_model, usual_pairs, value=value
            ),
        )
    return outcomes


def test_every_wrong_input_is_refused_with_a_message():
    outcomes = attempt_all()
    assert len(outcomes) > 250
    assert {call: outcome for call, outcome in outcomes.items() if not outcome.startswith("refused: ")} == {}
    for call, outcome in outcomes.items():
        assert len(outcome.removeprefix("refused: ")) > 20, call
