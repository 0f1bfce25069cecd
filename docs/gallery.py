"""Build `build/gallery/gallery.html`: every kind of picture, each from a real result.

    python docs/gallery.py [--screenshots]

With --screenshots (playwright and Chromium) it also takes `docs/gallery.png` for the documentation and, beside the page, a
picture of every section at three widths, light and dark.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import workbench as wb
from workbench.render import panels
from workbench.render.circuit.view import CircuitView
from workbench.render.notebook import html_of
from workbench.render.report import Html, Section, report

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gallery"
PAGE = FOLDER / "gallery.html"
PROMPTS = 3
WIDTHS = (1280, 800, 480)


@dataclass(frozen=True)
class Setting:
    """A model on the prompts of a task, with the activations of both sides."""

    model: Any
    pairs: Any
    stores: Sequence[Any]

    @classmethod
    def of(cls, name: str, task: str, n: int) -> "Setting":
        model = wb.load_model(name, device="cpu")
        pairs = wb.load_task(task, model, n=n)
        return cls(model, pairs, wb.capture_pairs(model, pairs))

    @property
    def value(self) -> Any:
        """The activations of the corrupt prompts."""
        return wb.from_store(self.stores[1])


def circuits(ioi: Setting) -> list[Section]:
    """A found circuit on several prompts, two methods compared, and a found circuit beside the true one."""
    model, pairs, value = ioi.model, ioi.pairs, ioi.value
    scores = wb.score_edges(model, pairs, value=value, method="eap-ig-inputs", keep=("example",))
    mean = scores.mean("example", skipna=False, keep_attrs=True)
    circuit = wb.find_circuit(mean, n_edges=60)
    tested = wb.evaluate(circuit, model, pairs, value=value)
    grown = wb.faithfulness_curve(circuit, model, pairs, value=value)
    views = []
    for i in range(PROMPTS):
        example = pairs.select([i])
        example_corrupt = wb.from_store(wb.capture_pairs(model, example)[1])
        views.append(
            CircuitView.of(
                circuit,
                title="Indirect objects in tiny",
                tokens=list(example.clean.strings[0]),
                position_scores=wb.score_edges(model, example, value=example_corrupt, keep=("pos",)),
                patterns={
                    (layer, head): ioi.stores[0]["pattern", layer].prompt(i)[head].numpy()
                    for layer, head in circuit.heads
                },
                faithfulness=(float(tested.faithfulness[0]), float(tested.low[0]), float(tested.high[0])),
                intervals=wb.summary(scores, draws=200),
                curve=grown,
            )
        )
    exact = wb.find_circuit(wb.score_edges(model, pairs, value=value, method="exact"), n_edges=60)
    compared = CircuitView.compared(
        circuit, exact, names=("eap-ig-inputs", "exact"), title="Two methods on one behaviour"
    )
    planted = wb.planted("backup")
    prompts = wb.planted_pairs(planted)
    corrupt = wb.from_store(wb.capture_pairs(planted.model, prompts)[1])
    found = wb.find_circuit(
        wb.score_edges(planted.model, prompts, value=corrupt, method="conditional"),
        n_edges=len(planted.edges["corrupt"]),
    )
    truth = wb.Circuit.of(found.graph, planted.edges["corrupt"])
    return [
        (
            "A circuit",
            CircuitView.on_prompts(views),
            "Drag the slider, open an edge or a node, change the prompt.",
        ),
        ("A large circuit", wb.find_circuit(mean, n_edges=200)),
        ("Two circuits", compared),
        (
            "Found and true",
            CircuitView.compared(
                truth, found, names=("true", "found"), title="A planted model with a backup head"
            ),
            "The model's weights were set by hand, so that its circuit is known.",
        ),
        ("Two circuits in numbers", wb.plot(wb.compare(circuit, exact))),
        (
            "Edges that all prompts agree on",
            wb.stability(scores, find=lambda s: wb.find_circuit(s, n_edges=30), draws=20),
        ),
        ("Edge scores", mean),
    ]


def trust(ioi: Setting, induction: Setting) -> list[Section]:
    """What is measured about a circuit that was found."""
    with TemporaryDirectory() as folder:
        run = wb.discover(ioi.model, "ioi", out=Path(folder) / "run", n=16, multiverse=True, progress=False)
    scores = wb.score_edges(induction.model, induction.pairs, value=induction.value, keep=("example",))
    mean = scores.mean("example", keep_attrs=True)
    small = wb.find_circuit(mean, n_edges=20)
    larger = wb.find_circuit(mean, n_edges=40)
    both = {"corrupt": induction.value, "zero": wb.zero()}
    on = (induction.model, induction.pairs)
    return [
        ("Circuits on held-out prompts", run.evaluation),
        ("A circuit and its checks", wb.evaluate(small, *on, value=induction.value)),
        ("Two circuits against two values", wb.evaluate([small, larger], *on, value=both, checks=())),
        ("Size against the criteria", run.frontier),
        ("Controls", run.controls),
        ("Stability of the rule", run.stability),
        ("Agreement with exact effects", run.agreement),
        ("Every way to choose", run.multiverse),
        ("Faithfulness by size", wb.faithfulness_curve(mean, *on, value=induction.value)),
        ("Whether edges are needed", wb.minimality(small, *on, value=induction.value)),
        ("Hypothesis tests", wb.circuit_tests(small, *on, value=induction.value, draws=40)),
    ]


def effects(ioi: Setting) -> list[Section]:
    """Interventions at sites and along paths."""
    model, pairs, value = ioi.model, ioi.pairs, ioi.value
    places = ["IO", "S1", "S2", "END"]
    by_place = wb.grid("resid_pre", model, pos=places)
    paths = wb.path_effects(
        model, pairs, senders="heads", receivers=["a3.7<v>", "logits"], value=value, mlps="recomputed"
    )
    senders = ["a2.0", "a2.7", "m0", "m1", "m2"]
    few = wb.path_effects(
        model, pairs, senders=senders, receivers=["a3.7<q>", "logits"], value=value, mlps="recomputed"
    )
    one = pairs.select([0])
    one_corrupt = wb.from_store(wb.capture_pairs(model, one)[1])
    each = wb.grid("resid_pre", model, pos="each")
    return [
        ("Ablating heads", wb.effects(model, pairs, sites=wb.grid("z", model), value=wb.zero())),
        (
            "Ablating heads, with intervals",
            wb.summary(wb.effects(model, pairs, sites=wb.grid("z", model), value=wb.zero())),
        ),
        (
            "Patching the residual stream",
            wb.effects(model, pairs, sites=by_place, value=wb.from_store(ioi.stores[0]), base="corrupt"),
        ),
        ("Patching one prompt, token by token", wb.effects(model, one, sites=each, value=one_corrupt)),
        ("MLPs", wb.effects(model, pairs, sites=wb.grid("mlp_out", model), value=wb.zero())),
        ("Paths from heads", paths),
        ("Paths between single components", few),
        ("Scores of nodes", wb.score_nodes(model, pairs, value=value)),
    ]


def lenses(ioi: Setting) -> list[Section]:
    """What the residual stream says, and which parts write it."""
    model, pairs, clean = ioi.model, ioi.pairs, ioi.stores[0]
    targets: dict[str, Any] = {"targets": pairs.answers, "minus": pairs.wrong}
    lens = wb.logit_lens(clean, model, **targets)
    return [
        ("Logit lens, one prompt", lens.isel(example=0)),
        ("Logit lens over layers", lens),
        ("Likeliest tokens", wb.top_tokens(clean, model, k=1)),
        ("Tuned lens", wb.plot(wb.fit_tuned_lens(clean, model, epochs=3))),
        ("Direct attribution of heads", wb.direct_attribution(clean, model, **targets)),
        ("Direct attribution of components", wb.direct_attribution(clean, model, **targets, by="component")),
        ("Direct attribution of neurons", wb.direct_attribution(clean, model, **targets, by="neuron")),
        ("Attention to named positions", wb.attention_to(clean, ["IO", "S1", "S2"])),
        ("Kinds of heads", wb.head_scores(clean)),
        ("Copying by heads", wb.copying_scores(clean, model)),
        ("Norms", wb.norms(clean).isel(example=0)),
    ]


def probes(model: Any) -> list[Section]:
    """What can be read where, and whether it is used."""
    pairs = wb.load_task("agreement", model, n=200)
    stores = wb.capture_pairs(model, pairs, sites=["resid_post", "mlp_post"])
    labels = wb.Labels.of_concepts(stores[0], ["number"], pos=["SUBJECT", "END"])
    fitted = wb.fit_probes(
        stores[0], labels, sites=["resid_post"], pos=["SUBJECT", "END"], k=[1, 4, 16], baselines=["mass-mean"]
    )
    used = wb.causal_check(
        fitted,
        model,
        pairs,
        concept="number",
        kind="resid_post",
        stores=stores,
        baseline="mass-mean",
        pos="END",
    )
    maps = wb.neuron_maps(stores[0], labels)
    return [
        ("Probes", wb.plot(fitted)),
        ("Read, or used?", wb.plot(used)),
        ("Neurons that tell a concept", maps),
        ("A card of probes", Html(str(html_of(fitted)))),
        ("A card of labels", Html(str(html_of(labels)))),
    ]


def sweeps(model: Any) -> list[Section]:
    """Many runs at once, what differs between two of them, and how well a model does its tasks."""
    with TemporaryDirectory() as folder:
        runs = {}
        for name, task in (("ioi", "ioi"), ("agreement", "agreement")):
            spec = {
                "preset": "head-ablation",
                "models": ["tiny"],
                "tasks": [{"name": task, "n": 16}],
                "values": ["zero", "mean"],
            }
            runs[name] = wb.run_sweep(spec, out=Path(folder) / name, progress=False)
        steering = {"preset": "steering", "models": ["tiny"], "tasks": [{"name": "ioi", "n": 16}]}
        steered = wb.run_sweep(steering, out=Path(folder) / "steering", progress=False)
        return [
            ("A sweep of ablations", wb.plot(runs["ioi"])),
            ("A sweep of steering", wb.plot(steered)),
            ("A sweep's card", Html(str(html_of(runs["ioi"])))),
            ("Two sweeps compared", wb.plot(wb.compare_sweeps(runs["ioi"], runs["agreement"]))),
            ("What a model can do", wb.plot(wb.measure(model, n=48, progress=False))),
        ]


def cards(ioi: Setting) -> list[Section]:
    """What a notebook shows of an object."""
    heads = wb.effects(ioi.model, ioi.pairs, sites=wb.grid("z", ioi.model), value=wb.zero())
    return [
        ("A card of pairs", Html(str(html_of(ioi.pairs)))),
        ("A card of a store", Html(str(html_of(ioi.stores[0])))),
        ("A card of effects", Html(str(html_of(heads)))),
    ]


def interactive_panels(ioi: Setting) -> list[Section]:
    """Attention, tokens and neurons of single prompts."""
    model, pairs, clean = ioi.model, ioi.pairs, ioi.stores[0]
    strings = list(pairs.clean.strings[0])
    acts = np.stack([clean["mlp_post", layer].prompt(0)[:, :4].numpy() for layer in (1, 2)], axis=1)
    many = [
        np.stack([clean["mlp_post", layer].prompt(i)[:, :4].numpy() for layer in (1, 2)], axis=1)
        for i in range(PROMPTS)
    ]
    top = wb.top_tokens(clean, model, k=5)
    norms = wb.norms(clean).isel(example=0, pos=slice(len(strings)))
    ids = [int(token) for token in pairs.clean.tokens[0][: len(strings)]]
    logprobs = wb.run(model, [ids]).logits[0].log_softmax(-1)
    return [
        ("Attention heads", panels.attention(clean, layer=3)),
        ("Attention, side by side", panels.attention(clean, heads=["a3.0", "a3.7"])),
        ("One pattern", panels.attention(clean, heads=["a3.7"], prompt=1)),
        ("Tokens", panels.tokens(strings, norms.isel(layer=-1).values, title="Norm of the residual stream")),
        (
            "Tokens, several rows",
            panels.tokens(
                strings,
                norms.values,
                names=[f"layer {i}" for i in norms.layer.values],
                title="Norm of the residual stream, layer by layer",
            ),
        ),
        ("Neurons", panels.neurons(strings, acts, layers=[1, 2])),
        (
            "Top samples",
            panels.top_samples([list(s) for s in pairs.clean.strings[:PROMPTS]], many, layers=[1, 2]),
        ),
        (
            "Next tokens",
            panels.log_probs(
                strings, logprobs, ids=ids, decode=lambda token: model.tokenizer.decode([token])
            ),
        ),
        (
            "Likeliest tokens, layer by layer",
            panels.top_tokens(top, lambda token: model.tokenizer.decode([token]), strings=strings),
        ),
    ]


def sections() -> list[Section]:
    """Every kind of picture."""
    ioi = Setting.of("tiny", "ioi", 32)
    induction = Setting.of("induction", "induction", 24)
    return [
        *circuits(ioi),
        *trust(ioi, induction),
        *effects(ioi),
        *lenses(ioi),
        *probes(ioi.model),
        *interactive_panels(ioi),
        *sweeps(ioi.model),
        *cards(ioi),
    ]


def build() -> Path:
    """Writes the page and returns its path."""
    return report(
        sections(),
        PAGE,
        title="Gallery",
        subtitle="Every kind of picture, from the embedded model and from planted ones",
        command="make gallery",
        overwrite=True,
    )


def screenshots(path: Path) -> None:
    """The first screen for the documentation, and each section as wide, narrow and dark readers see it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browsers import opened

    for width in WIDTHS:
        for theme in ("light", "dark"):
            with opened(path, width=width, height=1000, dark=theme == "dark") as seen:
                seen.page.wait_for_timeout(3000)
                if (width, theme) == (1280, "light"):
                    seen.page.screenshot(path=ROOT / "docs" / "gallery.png")
                folder = path.parent / f"{width}-{theme}"
                folder.mkdir(exist_ok=True)
                for number, section in enumerate(seen.page.locator("section").all(), 1):
                    # circuits are drawn when they come into view
                    section.scroll_into_view_if_needed()
                    seen.page.wait_for_timeout(400)
                    section.screenshot(path=folder / f"{number:02}.png")


if __name__ == "__main__":
    print(build())
    if "--screenshots" in sys.argv:
        screenshots(PAGE)
