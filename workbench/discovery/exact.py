"""Exact scores of edges, also in contexts where something else is already taken out.

An edge of a head that stands in for another has no effect while the other works. "conditional" therefore measures every
edge again where one of the strongest edges is already taken out, and keeps the largest effect, with its sign.
"""

import numpy as np
from tqdm.auto import tqdm

from workbench.engine.circuits import Circuits

CONTEXTS = 6


def exact_scores(
    circuits: Circuits, *, present: np.ndarray | None = None, progress: bool = False
) -> np.ndarray:
    """[example, (pos,) writer, reader]: m(present) - m(present without the edge); 0 for edges that are not present.

    Args:
        present: bool [(pos,) writer, reader], the edges that are there; None: all.
    """
    graph = circuits.graph
    present = graph.exists if present is None else present
    # Edges into late readers first: their runs begin late.
    at = sorted(np.argwhere(present).tolist(), key=lambda index: index[-1])
    found = np.zeros((len(circuits.pairs), *graph.exists.shape))
    whole = circuits.full if present is graph.exists else circuits.measure(present[None])[0]
    size = max(1, 2**27 // graph.exists.size)
    with tqdm(
        total=len(at), desc="edges", unit="edge", disable=None if progress else True, leave=False
    ) as bar:
        for first in range(0, len(at), size):
            part = tuple(np.array(at[first : first + size]).T)
            without = np.repeat(present[None], len(part[0]), axis=0)
            without[(np.arange(len(part[0])), *part)] = False
            found[(slice(None), *part)] = whole[:, None] - circuits.measure(without).T
            bar.update(len(part[0]))
    return found


def conditional_scores(circuits: Circuits, *, progress: bool = False) -> tuple[np.ndarray, int]:
    """[example, (pos,) writer, reader]: the exact score of each edge in the context where its mean is largest; and the runs.

    Contexts: nothing taken out, and each of the `CONTEXTS` strongest edges taken out.
    """
    graph = circuits.graph
    best = exact_scores(circuits, progress=progress)
    strength = np.where(graph.exists, np.abs(best.mean(0)), 0)
    ranked = [
        index
        for index in np.argsort(-strength, axis=None, kind="stable")[:CONTEXTS]
        if strength.flat[index] > 0
    ]
    for index in tqdm(ranked, desc="contexts", unit="edge", disable=None if progress else True, leave=False):
        present = graph.exists.copy()
        present.flat[index] = False
        found = exact_scores(circuits, present=present)
        best = np.where(np.abs(found.mean(0)) > np.abs(best.mean(0)), found, best)
    return best, (len(ranked) + 1) * (graph.n_edges + 1)
