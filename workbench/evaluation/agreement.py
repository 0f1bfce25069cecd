"""`agreement`: do the scores that made a circuit agree with the exact effects of single edges?

Two questions have two directions. *Noising*: an edge of the clean run is patched from the corrupt run; what
breaks? *Denoising*: an edge of the corrupt run is patched from the clean run; what comes back? An edge that
another can stand in for has no effect in the first (an OR), one that needs another has none in the second (an
AND). Exact effects of single edges are a yardstick for scores of edges, not the truth about circuits: in
either direction they are blind to what several edges only do together. Read `agreement`; `exchanged` makes
the pairs of the second direction.

Sources: Heimersheim and Nanda 2404.15255 (both directions), Clopper and Pearson 1934 (the bound).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest, rankdata

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.exact import lost_without
from workbench.discovery.score_arrays import finite_matrix_of, graph_of, joint_scores
from workbench.engine.circuits import Circuits, graph_of_runs
from workbench.errors import CircuitError, MetricError
from workbench.evaluation.controls import check_graph_of_runs
from workbench.models.calls import model_call
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs
from workbench.statistics import NO_DIFFERENCE, ROUNDING, central, check_level, check_seed, mean_interval

DIRECTIONS = ("noising", "denoising")
STRATA = ("inside", "outside")
ROOT_MEAN_SQUARE = "root mean square"
WEAK = 0.1
"""An edge is weak in a direction below this share of the circuit's median effect."""
DRAWS = 1000
RANKED_AT_ONCE = 2**22
"""Numbers of resamples that are ranked together: 32 MiB."""
FEWEST = 3
"""Edges from which on a rank correlation says something."""


@checked
def exchanged(pairs: PromptPairs) -> PromptPairs:
    """Pairs whose corrupt prompts are the run that is edited; the answers stay those of the clean prompts.

    So a metric still asks for the clean answer, and the value `from_store` of the clean prompts restores it.
    Only `corrupt` is exchanged; take `pairs.against(name)` first for another counterfactual.

    >>> pairs = PromptPairs.of([[5, 7]], [[4, 7]], [9], [8])
    >>> exchanged(pairs).clean.tokens.tolist(), exchanged(pairs).answers.tolist()
    ([[4, 7]], [[[9]]])
    """
    provenance = {**pairs.provenance, "edited": "corrupt"}
    return PromptPairs(pairs.corrupt, pairs.clean, pairs.answers, pairs.wrong, provenance)


@checked
@model_call()
def agreement(
    circuit: Circuit,
    scores: xr.DataArray,
    noising: Mapping[str, Circuits],
    denoising: Mapping[str, Circuits],
    *,
    n_inside: int = 40,
    n_outside: int = 40,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Exact effects of a random sample of edges, in both directions, beside the scores of these edges.

    noising: m(clean) - m(clean run with that edge patched). denoising: m(corrupt run with that edge from the
    clean run) - m(corrupt). Positive means in both that the edge supports the behaviour, also where a lower
    metric is better. Effects of single edges are blind to redundancy: they judge the scores, and a circuit
    only so far as each of its edges matters by itself.

    Two strata are sampled, each evenly and without replacement: the edges of the circuit and those outside;
    all of a stratum where it has no more than is asked for. The size of an effect is taken over prompts as
    that of a joint score: the root of the mean square where scores have an axis `example`, else the size of
    the mean.

    Cost: (`n_inside` + `n_outside`) circuits, in each direction and against each counterfactual, on every
    prompt of the runs.

    Args:
        circuit: dead ends are pruned.
        scores: of all edges; those of examples and counterfactuals are joined by `joint_scores`.
        noising: counterfactual → runs on the pairs, whose value is the corrupt run.
        denoising: the same counterfactuals → runs on `exchanged` pairs, whose value is the clean run.
        n_inside, n_outside: edges sampled of each stratum.
        level: coverage of the intervals, and of the one-sided bound.
        seed: of the sample and of the intervals.

    Returns:
        Dataset over (edge,), the names of the sampled edges: `inside`, `score` (joint magnitude); over
        (direction, ablation, edge): `effect` (mean over prompts, in the metric's unit) with `effect_low`,
        `effect_high` (over prompts), `size`. Over (ablation, edge): `one_direction`, "or-like" (strong in
        denoising only), "and-like" (in noising only) or "": an edge is strong from the circuit's median size on
        in that direction, and weak below a tenth of that median in the other.
        Over (direction, ablation, stratum): `spearman` of scores with sizes, `spearman_low`, `spearman_high`
        (bootstrap over edges; NaN for fewer than three). Over (direction, ablation): `median` (size inside),
        `above` (share of the sample outside whose size exceeds it) and `above_bound`, the one-sided
        Clopper-Pearson bound on that share of *all* edges outside (where all were measured, the share).
        Over (stratum,): `n` (sampled), `n_all`.
        attrs: `n_prompts` (the first runs' number), `over_prompts` (how sizes are taken), `unit`.

    Raises:
        CircuitError: other counterfactuals in the two directions, another graph, or negative numbers.
        MetricError: a metric that compares with the run that is edited, such as "kl".
        NotFinite: a score that is NaN or infinite.

    >>> import workbench as wb
    >>> from workbench.engine.circuits import Circuits
    >>> known = wb.planted("induction", n=4)
    >>> pairs, metric = wb.planted_pairs(known), wb.metric("logit_diff")
    >>> clean, corrupt = map(wb.from_store, wb.capture_pairs(known.model, pairs, progress=False))
    >>> scores = wb.score_edges(known.model, pairs, value=corrupt, progress=False)
    >>> circuit = wb.find_circuit(scores, n_edges=5)
    >>> noising = {"swap": Circuits(known.model, circuit.graph, pairs, value=corrupt, metric=metric)}
    >>> back = exchanged(pairs)
    >>> denoising = {"swap": Circuits(known.model, circuit.graph, back, value=clean, metric=metric)}
    >>> agreement(circuit, scores, noising, denoising, n_outside=5).sizes["stratum"]
    2
    """
    check_level(level)
    check_seed(seed)
    if n_inside < 0 or n_outside < 0:
        raise CircuitError(
            f"agreement: n_inside={n_inside}, n_outside={n_outside}; they are numbers of edges from 0 up."
        )
    _check_runs(circuit, noising, denoising)
    over_prompts = ROOT_MEAN_SQUARE if "example" in scores.dims else "mean"
    joint = joint_scores(scores)
    if graph_of(joint) != circuit.graph:
        raise CircuitError(
            f"agreement: the scores are of another graph: {graph_of(joint)}; the circuit has {circuit.graph}."
        )
    strength = np.abs(finite_matrix_of(joint, circuit.graph, "agreement"))
    sample = _sample(
        graph_of_runs(noising).joined(graph_of_runs(denoising)), circuit, n_inside, n_outside, seed
    )
    names = list(noising)
    # [direction][ablation]
    effects: list[list[_Effects]] = []
    with progress_bar(2 * len(names), "edges", "direction", shown=progress) as bar:
        # Noising says what patching takes away, denoising what it brings back.
        for runs, sign in ((noising, 1.0), (denoising, -1.0)):
            effects.append([])
            for name in names:
                measured = sign * lost_without(runs[name], sample.cells)
                effects[-1].append(_Effects.of(measured, runs[name], over_prompts, level, seed))
                bar.update()

    def table(field: str) -> np.ndarray:
        """[direction, ablation, ...] of a field of the effects."""
        return np.stack([[getattr(one, field) for one in row] for row in effects])

    dims = ("direction", "ablation", "edge")
    columns: dict[str, Any] = {
        "effect": (dims, table("mean")), "effect_low": (dims, table("low")),
        "effect_high": (dims, table("high")), "size": (dims, table("size")),
        "inside": ("edge", sample.inside), "score": ("edge", strength[tuple(sample.cells.T)]),
        "n": ("stratum", np.array(sample.n)), "n_all": ("stratum", np.array(sample.n_all)),
    }  # fmt: skip
    sizes, inside = table("size"), sample.inside
    columns |= _rank_agreement(columns["score"][1], sizes, inside, level, seed)
    medians = np.median(sizes[..., inside], -1) if inside.any() else np.full(sizes.shape[:2], np.nan)
    columns |= _beyond(sizes[..., ~inside], medians, sample, level)
    columns["one_direction"] = (dims[1:], _one_direction(sizes, medians, table("rounding")))
    coords = {
        "direction": list(DIRECTIONS), "ablation": names, "stratum": list(STRATA), "edge": sample.names,
    }  # fmt: skip
    first = next(iter(noising.values()))
    facts = {
        "kind": "agreement", "level": level, "seed": seed, "over_prompts": over_prompts,
        "n_prompts": len(first.pairs), "metric": first.pairs_metric.name, "unit": first.pairs_metric.unit,
        "strata": "inside: the edges of the circuit; outside: all other edges of the graph",
    }  # fmt: skip
    return xr.Dataset(columns, coords=coords, attrs=clean_attrs(facts))


@dataclass(frozen=True, eq=False)
class _Sample:
    """Edges that are measured, in graph order.

    Attributes:
        cells: their indices, [edge, (pos,) writer, reader].
        inside: [edge], whether the circuit has them.
        n, n_all: of each of `STRATA`: sampled, and in the graph.
    """

    cells: Int[np.ndarray, "edge axis"]
    names: list[str]
    inside: Bool[np.ndarray, "edge"]
    n: tuple[int, int]
    n_all: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Effects:
    """Effects of edges in one direction against one counterfactual: means, intervals and sizes, [edge].

    Attributes:
        rounding: differences of the metric up to this much are nothing.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    size: np.ndarray
    rounding: float

    @classmethod
    def of(
        cls,
        measured: Float[np.ndarray, "edge example"],
        runs: Circuits,
        over_prompts: str,
        level: float,
        seed: int,
    ) -> "_Effects":
        """What is known of effects, prompt by prompt, that are positive where a higher metric results."""
        supporting = measured if runs.pairs_metric.higher_is_better else -measured
        mean = supporting.mean(1)
        low, high = mean_interval(supporting.T, level=level, seed=seed)
        size = np.abs(mean)
        if over_prompts == ROOT_MEAN_SQUARE:
            size = np.sqrt((supporting**2).mean(1))
        rounding = max(NO_DIFFERENCE, ROUNDING * float(np.abs(runs.full).mean()))
        return cls(mean, low, high, size, rounding)


def _check_runs(circuit: Circuit, noising: Mapping[str, Circuits], denoising: Mapping[str, Circuits]) -> None:
    """Raise unless both directions have runs of the circuit's graph against the same counterfactuals."""
    for runs in (noising, denoising):
        check_graph_of_runs("agreement", circuit, runs)
    if set(noising) != set(denoising):
        raise CircuitError(
            f"agreement: noising has the counterfactuals {', '.join(noising)} and denoising "
            f"{', '.join(denoising)}: give both directions of each."
        )
    for one in (*noising.values(), *denoising.values()):
        if one.pairs_metric.needs_reference:
            raise MetricError(
                f"agreement: {one.pairs_metric.name} measures the distance to the run that is edited, which is "
                "the clean run in one direction and the corrupt run in the other. Use a metric of the answers, "
                "such as logit_diff."
            )


def _sample(graph: Graph, circuit: Circuit, n_inside: int, n_outside: int, seed: int) -> _Sample:
    """A random sample of each stratum, or all of it."""
    rng, own = np.random.default_rng(seed), graph.prune(circuit.edges)
    chosen = np.zeros_like(own)
    counts = []
    for stratum, wanted in ((own, n_inside), (graph.exists & ~own, n_outside)):
        places = np.flatnonzero(stratum)
        drawn = places if len(places) <= wanted else rng.choice(places, wanted, replace=False)
        chosen.flat[drawn] = True
        counts.append((len(drawn), len(places)))
    (inside, all_inside), (outside, all_outside) = counts
    return _Sample(
        np.argwhere(chosen), list(map(str, graph.edges(chosen))), own[chosen], (inside, outside),
        (all_inside, all_outside),
    )  # fmt: skip


def _rank_agreement(
    scores: np.ndarray, sizes: np.ndarray, inside: np.ndarray, level: float, seed: int
) -> dict[str, Any]:
    """Spearman's correlation of scores with sizes [direction, ablation, edge], in each stratum."""
    shape = (*sizes.shape[:2], len(STRATA))
    middle, low, high = (np.full(shape, np.nan) for _ in range(3))
    for k, members in enumerate((inside, ~inside)):
        if members.sum() < FEWEST:
            continue
        # [edge, score + sizes of each direction and counterfactual]: an edge is drawn with all of them.
        table = np.column_stack([scores[members], sizes[..., members].reshape(-1, members.sum()).T])
        ends = central(_resampled_spearman(table, seed), level)
        for target, numbers in zip((middle, low, high), (_spearman(table), *ends), strict=True):
            target[..., k] = numbers.reshape(shape[:2])
    dims = ("direction", "ablation", "stratum")
    return {"spearman": (dims, middle), "spearman_low": (dims, low), "spearman_high": (dims, high)}


def _resampled_spearman(table: np.ndarray, seed: int) -> Float[np.ndarray, "draw column"]:
    """The rank correlations of resamples of the edges of a table [edge, column]."""
    n = len(table)
    drawn = np.random.default_rng(seed).integers(0, n, (DRAWS, n))
    # Many resamples are ranked together, as few at a time as fit a fixed amount of memory.
    per_pass = max(1, RANKED_AT_ONCE // table.size)
    return np.concatenate(
        [_spearman(table[drawn[start : start + per_pass]]) for start in range(0, DRAWS, per_pass)]
    )


def _spearman(table: Float[np.ndarray, "*draw edge column"]) -> np.ndarray:
    """[*draw, column]: the rank correlation of the first column with each other one.

    NaN where a column is constant.
    """
    ranks = rankdata(table, axis=-2)
    ranks = ranks - ranks.mean(-2, keepdims=True)
    spread = np.sqrt((ranks**2).sum(-2))
    product = spread[..., :1] * spread[..., 1:]
    shared = (ranks[..., :1] * ranks[..., 1:]).sum(-2)
    return shared / np.where(product > 0, product, np.nan)


def _beyond(outside: np.ndarray, medians: np.ndarray, sample: _Sample, level: float) -> dict[str, Any]:
    """The share of edges outside whose size [direction, ablation, edge] exceeds the circuit's median."""
    n, n_all = sample.n[1], sample.n_all[1]
    above, bound = np.full(medians.shape, np.nan), np.full(medians.shape, np.nan)
    if n:
        hits = (outside > medians[..., None]).sum(-1)
        above = np.where(np.isnan(medians), np.nan, hits / n)
        for place in np.ndindex(medians.shape):
            test = binomtest(int(hits[place]), n, alternative="less")
            bound[place] = test.proportion_ci(confidence_level=level, method="exact").high
        # Where all edges were measured nothing is left to infer.
        bound = above if n == n_all else np.where(np.isnan(medians), np.nan, bound)
    dims = ("direction", "ablation")
    return {"median": (dims, medians), "above": (dims, above), "above_bound": (dims, bound)}


def _one_direction(sizes: np.ndarray, medians: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """[ablation, edge]: "or-like", "and-like" or "", from sizes [direction, ablation, edge]."""
    # A median that is rounding is exceeded by chance, and so is a tenth of one that is hardly more.
    least = np.maximum(medians, rounding / WEAK)[..., None]
    # Edges on one path often have the same effect, and rounding must not part them.
    is_strong = sizes >= least * (1 - ROUNDING)
    # Both ends of the comparison are of the direction in which the edge is strong.
    is_weak = sizes[::-1] < WEAK * least
    kinds = np.full(sizes.shape[1:], "", dtype=object)
    kinds[is_strong[0] & is_weak[0]] = "and-like"
    kinds[is_strong[1] & is_weak[1]] = "or-like"
    return kinds
