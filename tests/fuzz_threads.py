"""Two threads that use one model at once: each gets what it gets alone."""

import random
import threading
from typing import Any

import fuzz_calls
from fuzz_world import WrongResult, agree, content, recipes, told

_RUN = (
    "run",
    "capture",
    "effects",
    "effects-at",
    "path_effects",
    "paths",
    "score_edges",
    "evaluate",
    "top_tokens",
)
_RUN += (
    "logit_lens",
    "direct_attribution",
    "copying_scores",
    "curve",
    "acdc",
    "score_nodes",
    "capture_pairs",
)


def one(rng: random.Random) -> str:
    """Two or three threads of a few calls each."""
    chosen = [number for number, recipe in enumerate(recipes()) if recipe.name in _RUN]
    plans = [[rng.choice(chosen) for _ in range(rng.choice((1, 2)))] for _ in range(rng.choice((2, 2, 3)))]
    for number in {number for plan in plans for number in plan}:
        fuzz_calls.right(number)
    told.append(" | ".join(", ".join(recipes()[number].name for number in plan) for plan in plans))
    wrong: list[BaseException] = []

    def work(plan: list[int]) -> None:
        try:
            for number in plan:
                result: Any = content(recipes()[number].run())
                if not agree(result, fuzz_calls.right(number)):
                    raise WrongResult(f"{recipes()[number].name} differs beside another thread")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(plan,), daemon=True) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError("two threads wait for each other")
    if wrong:
        raise wrong[0]
    return "the same"
