"""Exact scores of edges, also in contexts where something else is already taken out.

An edge of a head that stands in for another has no effect while the other works. "conditional" therefore
measures every edge again where one of the strongest edges is already taken out, and keeps the largest effect,
with its sign. `score_edges` calls these functions; they know no labels.
"""

import numpy as np
from jaxtyping import Float, Int

from workbench.engine.circuits import Circuits
from workbench.progress import progress_bar

CONTEXTS = 6
"""How many of the strongest edges are taken out, one at a time."""
MASKS_AT_ONCE = 2**27
"""Truth values of masks that are held at a time: 128 MiB."""


def exact_scores(
    circuits: Circuits, *, present: np.ndarray | None = None, progress: bool = False
) -> np.ndarray:
    """[example, (pos,) writer, reader]: m(present) - m(present without the edge); 0 for absent edges.

    Args:
        present: bool [(pos,) writer, reader], the edges that are there; None: all.
    """
    graph = circuits.graph
    cells = np.argwhere(graph.exists if present is None else present)
    scores = np.zeros((len(circuits.pairs), *graph.exists.shape))
    # An index array per axis, as numpy indexes cells.
    lost = lost_without(circuits, cells, present=present, progress=progress)
    scores[(slice(None), *cells.T)] = lost.T
    return scores


def lost_without(
    circuits: Circuits,
    cells: Int[np.ndarray, "edge axis"],
    *,
    present: np.ndarray | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "edge example"]:
    """m(present) - m(present without the edge), for some edges one at a time.

    Args:
        cells: indices of the edges, (pos,) writer, reader.
        present: as in `exact_scores`.
    """
    whole = circuits.full
    if present is None:
        present = circuits.graph.exists
    else:
        whole = circuits.measure(present[None])[0]
    lost = np.zeros((len(cells), len(circuits.pairs)))
    # In the order of readers: runs of a batch begin at the first block that any of them changes.
    order = np.argsort(cells[:, -1], kind="stable")
    size = max(1, MASKS_AT_ONCE // present.size)
    with progress_bar(len(cells), "edges", "edge", shown=progress) as bar:
        for start in range(0, len(cells), size):
            some = order[start : start + size]
            without = np.repeat(present[None], len(some), axis=0)
            without[(np.arange(len(some)), *cells[some].T)] = False
            lost[some] = whole - circuits.measure(without)
            bar.update(len(some))
    return lost


def conditional_scores(circuits: Circuits, *, progress: bool = False) -> tuple[np.ndarray, int]:
    """Each edge's exact score [example, (pos,) writer, reader] where it is largest, and the number of runs.

    The score is that of the context in which its mean over prompts is largest in size.

    Contexts: nothing taken out, and each of the `CONTEXTS` strongest edges taken out.
    """
    graph = circuits.graph
    best = exact_scores(circuits, progress=progress)
    strength = np.where(graph.exists, np.abs(best.mean(0)), 0)
    strongest = np.argsort(-strength, axis=None, kind="stable")[:CONTEXTS]
    # Without such an edge the model is the same, so its context would repeat the full model's.
    taken_out = [index for index in strongest if strength.flat[index] > 0]
    with progress_bar(len(taken_out), "contexts", "edge", shown=progress) as bar:
        for index in taken_out:
            present = graph.exists.copy()
            present.flat[index] = False
            scores = exact_scores(circuits, present=present)
            # One context for all prompts of an edge: the choice is made by the mean.
            best = np.where(np.abs(scores.mean(0)) > np.abs(best.mean(0)), scores, best)
            bar.update()
    return best, (len(taken_out) + 1) * (graph.n_edges + 1)
