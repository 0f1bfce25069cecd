"""Sparse probes against TransformerLens' sweeps and scikit-learn: time, agreement, recovery of planted neurons, memory.

    python tests/benchmarks/probes.py [--quick] [--json] [--only PART]

Both sides fit the same problems: the same rows held out, the same l2 strength, balanced classes, raw activations, neurons
chosen by the difference of class means. The peers fit one (layer, concept) after the other, so they are timed on some and
their time is multiplied; --quick takes fewer of them. Supports must be identical; `max_abs_diff` is that of held-out
accuracy. A case that bounds a cost has the bar 1 and the ratio limit / measured; for planted neurons the ratio is the share found.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Line, arguments, show_cases
from sklearn.linear_model import LogisticRegression
from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe, sweep_sparse_probe

import workbench as wb

sys.path.insert(0, str(Path(__file__).parents[1]))
from probing import labelled, marginal, suppressors

LAYERS, NEURONS, EXAMPLES, CONCEPTS = 12, 3072, 5000, 10
KS = [1, 2, 4, 8, 16, 32, 64]
L2 = 1e-2
RAW = wb.ProbeSettings(l2=L2, standardize=False)
PLAIN: dict[str, Any] = {"selectors": ["mean-difference"], "settings": RAW, "resampled": 0}


def line(
    case: str, peer: str, bar: float, ratio: float, ours: float, theirs: float, difference: float = 0.0
) -> Line:
    return Line(case, peer, bar, round(ratio, 3), round(ours, 4), round(theirs, 4), difference, 0.0, 0.0, 0.0)


def data(n: int) -> tuple[list[np.ndarray], dict[str, list[bool]]]:
    """Activations of every layer, rectified and of unequal scales, and concepts that twenty neurons of each layer tell."""
    rng = np.random.default_rng(0)
    truths = {f"c{c}": rng.random(n) < 0.2 + 0.05 * c for c in range(CONCEPTS)}
    layers = []
    for _ in range(LAYERS):
        x = rng.standard_normal((n, NEURONS), dtype=np.float32)
        for truth in truths.values():
            x[:, rng.choice(NEURONS, 20, replace=False)] += 0.5 * truth[:, None].astype(np.float32)
        layers.append(np.maximum(x, 0) * np.exp(0.5 * rng.standard_normal(NEURONS)).astype(np.float32))
    return layers, {name: truth.tolist() for name, truth in truths.items()}


def held_out(concepts: dict[str, list[bool]]) -> np.ndarray:
    """[concept, row]: the rows that the peer holds out of each concept."""
    masks = []
    for truth in concepts.values():
        test = fit_sparse_probe(
            torch.zeros(len(truth), 1), torch.tensor(truth), k=1, l2_strength=L2
        ).test_indices
        masks.append(np.isin(np.arange(len(truth)), test.numpy()))
    return np.stack(masks)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = run()
    return time.perf_counter() - start, made


def sweeps(sample: int, controls: int) -> Sequence[Line]:
    """12 layers x 10 concepts x 7 values of k, with `controls` null fits of two kinds each; the peers on `sample` problems."""
    layers, concepts = data(EXAMPLES)
    store, labels = labelled(layers, concepts)
    masks = held_out(concepts)
    given: dict[str, Any] = PLAIN | {"k": KS, "held_out": masks, "draws": controls or 1}
    given |= {"controls": ("shuffle", "random-features") if controls else ()}
    wb.fit_probes(store, labels, layers=[0], **given)
    ours, probes = timed(lambda: wb.fit_probes(store, labels, **given))
    table = probes.results.sel(control="none", selector="mean-difference")
    chosen = [(i % LAYERS, i % CONCEPTS) for i in range(sample)]
    worst, spent, learned = 0.0, 0.0, 0.0
    for layer, c in chosen:
        name, x = list(concepts)[c], torch.from_numpy(layers[layer])
        truth = torch.tensor(concepts[name])
        nulls = {"n_random_subsets": controls, "n_label_shuffles": controls}
        took, peer = timed(
            lambda x=x, truth=truth, nulls=nulls: sweep_sparse_probe(x, truth, ks=KS, l2_strength=L2, **nulls)
        )
        spent += took
        cell = table.sel(layer=layer, concept=name)
        for found in peer.results:
            at = cell.sel(k=found.k)
            if at["feature"].values[: found.k].tolist() != found.selected_features.tolist():
                raise AssertionError(f"layer {layer}, {name}, k={found.k}: other neurons were chosen")
            worst = max(worst, abs(float(at["accuracy"]) - found.metrics.accuracy))
        if not controls:
            learned += scikit(layers[layer], np.array(concepts[name]), masks[c], cell)
    scale = LAYERS * CONCEPTS / sample
    what = f"{LAYERS} x {NEURONS} neurons, {EXAMPLES} examples, {CONCEPTS} concepts, {len(KS)} values of k"
    if controls:
        what += f", {controls} + {controls} null controls"
    bar = 10 if controls else 9
    lines = [
        line(
            what,
            f"TransformerLens sweep_sparse_probe ({sample} of 120)",
            bar,
            spent * scale / ours,
            ours,
            spent * scale,
            worst,
        )
    ]
    if not controls:
        peer = f"scikit-learn, one fit after the other ({sample} of 120)"
        lines.append(line(what, peer, 3, learned * scale / ours, ours, learned * scale, worst))
    return lines


def scikit(x: np.ndarray, truth: np.ndarray, mask: np.ndarray, cell: Any) -> float:
    """Seconds to choose neurons with numpy and fit each k with scikit-learn; its accuracy must be ours."""
    start, right = time.perf_counter(), {}
    train, y = x[~mask], truth[~mask]
    order = np.argsort(-np.abs(train[y].mean(0) - train[~y].mean(0)), kind="stable")
    for k in KS:
        columns = order[:k]
        fitted = LogisticRegression(C=1 / (L2 * len(y)), class_weight="balanced", tol=1e-8, max_iter=1000)
        fitted.fit(train[:, columns].astype(np.float64), y)
        right[k] = float((fitted.predict(x[mask][:, columns].astype(np.float64)) == truth[mask]).mean())
    took = time.perf_counter() - start
    for k, accuracy in right.items():
        if abs(accuracy - float(cell["accuracy"].sel(k=k))) > 2 / mask.sum():
            raise AssertionError(
                f"k={k}: scikit-learn's accuracy is {accuracy}, ours {float(cell['accuracy'].sel(k=k))}"
            )
    return took


def every_neuron(sample: int) -> Sequence[Line]:
    """A probe of each single neuron for one concept, against a loop of the peer's on a sample of neurons."""
    layers, concepts = data(2000)
    truth = concepts["c5"]
    store, labels = labelled(layers, {"c5": truth})
    mask = held_out({"c5": truth})
    wb.neuron_maps(store, labels, l2=L2, held_out=mask, layers=[0])
    ours, maps = timed(lambda: wb.neuron_maps(store, labels, l2=L2, held_out=mask))
    neurons = [(i % LAYERS, (i * 37) % NEURONS) for i in range(sample)]
    one = torch.tensor(truth)

    def loop() -> list[Any]:
        return [
            fit_sparse_probe(torch.from_numpy(layers[at][:, n : n + 1]), one, k=1, l2_strength=L2)
            for at, n in neurons
        ]

    spent, peers = timed(loop)
    worst = 0.0
    for (layer, neuron), peer in zip(neurons, peers, strict=True):
        cell = maps.sel(layer=layer, neuron=neuron, concept="c5")
        worst = max(worst, abs(float(cell["accuracy"]) - peer.metrics.accuracy))
        worst = max(worst, abs(float(cell["coefficient"]) - float(peer.coefficients[0])))
    theirs = spent * LAYERS * NEURONS / sample
    case = f"k=1 probes of all {LAYERS * NEURONS:,} neurons, 2000 examples"
    return [
        line(case, f"a loop of fit_sparse_probe ({sample} timed)", 100, theirs / ours, ours, theirs, worst)
    ]


def planted() -> Sequence[Line]:
    """Shares of planted neurons that add-prune finds at the true k, five seeds each."""
    lines = []
    for case, make, bar in (("suppressor pairs", suppressors, 0.9), ("marginal signals", marginal, 0.97)):
        shares, spent = [], 0.0
        for seed in range(5):
            x, y, chosen = make(seed)
            store, labels = labelled([x.astype(np.float32)], {"c": y.tolist()})
            took, probes = timed(
                lambda store=store, labels=labels, chosen=chosen: wb.fit_probes(
                    store, labels, k=[len(chosen)], selectors=["add-prune"], controls=[], resampled=0
                )
            )
            found = set(probes.results["feature"].values.flatten().astype(int).tolist())
            shares.append(len(found & chosen) / len(chosen))
            spent += took
        share = float(np.mean(shares))
        lines.append(
            line(
                f"add-prune finds planted {case}",
                "the planted neurons; the ratio is the share found",
                bar,
                share,
                spent / 5,
                0,
            )
        )
    return lines


MEMORY = """
import sys, threading
import numpy as np
sys.path.insert(0, {here!r})
import workbench as wb
from workbench.stores.disk import open_store

def own():
    # What the process holds itself; mapped pages of files are given back when memory is wanted.
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

store = open_store({place!r})
n = len(store)
rng = np.random.default_rng(0)
labels = wb.Labels.per_prompt(store, {{f"c{{i}}": (rng.random(n) < 0.4).tolist() for i in range(10)}}, pos=list(range(64)))
before, peak, done = own(), [0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], own())

threading.Thread(target=watch, daemon=True).start()
wb.fit_probes(store, labels, k=[1, 4, 16], layers=[0, 5, 11], controls=["shuffle"], draws=1, resampled=0)
done.set()
print(store.nbytes(), len(labels), peak[0] - before)
"""


def memory(gigabytes: float) -> Sequence[Line]:
    """Growth of a process that probes every token of a store, against the default budget of 1 GiB."""
    from stores import made

    with tempfile.TemporaryDirectory() as name:
        store = made(Path(name) / "store", gigabytes)
        code = MEMORY.format(here=str(Path(__file__).parent), place=store.path)
        took, done = timed(
            lambda: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        )
    size, rows, peak = map(int, done.stdout.split())
    case = (
        f"peak memory of probing {rows:,} rows of {size / 1e9:.1f} GB at most 1 GiB: {peak / 2**20:.0f} MiB"
    )
    return [line(case, "the default budget", 1, 2**30 / max(peak, 1), took, 0)]


def main() -> None:
    asked = arguments(__doc__)
    sample = 4 if asked.quick else 20
    cases: dict[str, Callable[[], Sequence[Line]]] = {
        "sweep": lambda: sweeps(sample, 0),
        "controls": lambda: sweeps(max(2, sample // 4), 5),
        "neurons": lambda: every_neuron(50 if asked.quick else 300),
        "planted": planted,
        "memory": lambda: memory(1.0 if asked.quick else 4.0),
    }
    for _ in show_cases(cases, asked):
        pass


if __name__ == "__main__":
    main()
