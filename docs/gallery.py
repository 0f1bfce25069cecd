"""Build `build/gallery.html`.

Every kind of picture, from `tiny` and from a planted model, each from a real result.

    python docs/gallery.py [--screenshots]

With --screenshots (playwright and Chromium) it also takes `docs/gallery.png` for the guide and, beside the
page, pictures of it on narrow and dark screens and as a PDF.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import workbench as wb
from workbench.render import panels
from workbench.render.circuit.view import CircuitView
from workbench.render.panel import Panel
from workbench.render.report import Section, report

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "build" / "gallery.html"
PROMPTS = 3


def circuits(model: Any, pairs: Any, stores: Sequence[Any]) -> list[Section]:
    """A found circuit on several prompts, two methods compared, and a found circuit beside the true one."""
    value = wb.from_store(stores[1])
    scores = wb.score_edges(model, pairs, value=value, method="eap-ig-inputs", keep=("example",))
    mean = scores.mean("example", skipna=False, keep_attrs=True)
    circuit = wb.find_circuit(mean, n_edges=60)
    tested = wb.evaluate(circuit, model, pairs, value=value)
    curve = wb.faithfulness_curve(mean, model, pairs, value=value)
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
                    (layer, head): stores[0]["pattern", layer].prompt(i)[head].numpy()
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
        ("Two circuits", compared, "Solid: in both; dashed and dotted: only in one."),
        (
            "Found and true",
            CircuitView.compared(
                truth, found, names=("true", "found"), title="A planted model with a backup head"
            ),
            "The model's weights were set by hand, so that its circuit is known.",
        ),
        ("Faithfulness by size", curve),
        (
            "Whether edges are needed",
            wb.evaluate(circuit, model, pairs, value={"corrupt": value, "zero": wb.zero()}),
        ),
        (
            "Edges that all prompts agree on",
            wb.stability(scores, find=lambda s: wb.find_circuit(s, n_edges=30), draws=20),
        ),
    ]


def tables(model: Any, pairs: Any, stores: Sequence[Any]) -> list[Section]:
    """Effects, lenses, attribution and attention as figures."""
    clean, value = stores[0], wb.from_store(stores[1])
    targets: dict[str, Any] = {"targets": pairs.answers, "minus": pairs.wrong}
    places = ["IO", "S1", "S2", "END"]
    return [
        ("Ablating heads", wb.effects(model, pairs, sites=wb.grid("z", model), value=wb.zero())),
        (
            "Patching the residual stream",
            wb.effects(
                model,
                pairs,
                sites=wb.grid("resid_pre", model, pos=places),
                value=wb.from_store(clean),
                base="corrupt",
            ),
        ),
        (
            "Paths from heads",
            wb.path_effects(
                model, pairs, senders="heads", receivers=["a3.7<v>", "logits"], value=value, mlps="recomputed"
            ),
        ),
        ("Logit lens, one prompt", wb.logit_lens(clean, model, **targets).isel(example=0)),
        ("Logit lens over layers", wb.logit_lens(clean, model, **targets).isel(pos=-1)),
        ("Likeliest tokens", wb.top_tokens(clean, model, k=1)),
        ("Direct attribution", wb.direct_attribution(clean, model, **targets)),
        ("Attention to named positions", wb.attention_to(clean, places[:3])),
        ("Kinds of heads", wb.head_scores(clean)),
    ]


def probes(model: Any) -> list[Section]:
    """What can be read where, and whether it is used."""
    pairs = wb.load_task("agreement", model, n=200)
    stores = wb.capture_pairs(model, pairs, sites=["resid_post"])
    labels = wb.Labels.of_concepts(stores[0], ["number"], pos=["SUBJECT", "END"])
    fitted = wb.fit_probes(stores[0], labels, pos=["SUBJECT", "END"], k=[1, 4, 16], baselines=["mass-mean"])
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
    return [("Probes", wb.plot(fitted)), ("Read, or used?", wb.plot(used))]


def interactive_panels(model: Any, pairs: Any, stores: Sequence[Any]) -> list[Section]:
    """The components of circuitsvis."""
    clean = stores[0]
    strings = list(pairs.clean.strings[0])
    acts = np.stack([clean["mlp_post", layer].prompt(0)[:, :4].numpy() for layer in (1, 2)], axis=1)
    many = [
        np.stack([clean["mlp_post", layer].prompt(i)[:, :4].numpy() for layer in (1, 2)], axis=1)
        for i in range(PROMPTS)
    ]
    pattern = clean["pattern", 3].prompt(0)[:2].numpy()
    top = wb.top_tokens(clean, model, k=5)
    norms = wb.norms(clean).isel(example=0, pos=slice(len(strings)))
    ids = [int(token) for token in pairs.clean.tokens[0][: len(strings)]]
    logprobs = wb.run(model, [ids]).logits[0].log_softmax(-1)
    return [
        ("Attention heads", panels.attention(clean, layer=3)),
        ("Attention, side by side", Panel("AttentionPatterns", {"attention": pattern, "tokens": strings})),
        ("One pattern", Panel("AttentionPattern", {"attention": pattern[0], "tokens": strings})),
        ("Tokens", panels.tokens(strings, norms.isel(layer=-1).values, title="Norm of the residual stream")),
        (
            "Tokens, several rows",
            panels.tokens(strings, norms.values, labels=[f"layer {i}" for i in norms.layer.values]),
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


def build() -> Path:
    """Writes the page and returns its path."""
    model = wb.load_model("tiny", device="cpu")
    pairs = wb.load_task("ioi", model, n=32)
    stores = wb.capture_pairs(model, pairs)
    sections = [*circuits(model, pairs, stores), *tables(model, pairs, stores), *probes(model)]
    return report(
        [*sections, *interactive_panels(model, pairs, stores)],
        PAGE,
        title="Gallery",
        subtitle="Every kind of picture, from the embedded model and from a planted one",
        command="make gallery",
        overwrite=True,
    )


def screenshots(path: Path) -> None:
    """The first screen for the guide, and the page as narrow, dark and printed readers see it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browsers import opened

    for name, width, dark in (
        ("wide", 1400, False),
        ("wide-dark", 1400, True),
        ("narrow", 480, False),
        ("narrow-dark", 480, True),
    ):
        with opened(path, width=width, height=1000, dark=dark) as seen:
            if name == "wide":
                seen.page.wait_for_timeout(1500)
                seen.page.screenshot(path=ROOT / "docs" / "gallery.png")
                seen.page.pdf(path=path.with_name("gallery.pdf"), print_background=True)
            # only what is in view is painted
            seen.page.set_viewport_size(
                {"width": width, "height": seen.page.evaluate("document.body.scrollHeight")}
            )
            seen.page.wait_for_timeout(3000)
            seen.page.screenshot(path=path.with_name(f"gallery-{name}.png"))


if __name__ == "__main__":
    print(build())
    if "--screenshots" in sys.argv:
        screenshots(PAGE)
