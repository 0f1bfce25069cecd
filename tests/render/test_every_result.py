"""`plot` draws what every public function returns: each is run on `tiny`, and its figure looked at."""

import inspect
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from card_checks import checked_card
from fake_sweeps import record, write_sweep
from matplotlib.figure import Figure

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.evaluation.benchmark import Row
from workbench.render.circuit.view import CircuitView
from workbench.render.figures import grids
from workbench.render.figures.canvas import figure_html
from workbench.render.figures.grids import heatmaps

PICTURES = {
    "acdc": "circuit", "learn_circuit": "circuit", "find_circuit": "circuit",
    "reference_circuit": "circuit", "read_circuit": "circuit", "effects": "effects",
    "path_effects": "path_effects", "logit_lens": "logit_lens", "top_tokens": "top_tokens",
    "norms": "norms", "attention_to": "attention_to", "head_scores": "head_scores",
    "copying_scores": "copying_scores", "measure": "measure", "direct_attribution": "direct_attribution",
    "score_edges": "score_edges", "score_nodes": "score_nodes", "compare": "compare",
    "evaluate": "evaluate", "minimality": "minimality", "stability": "stability",
    "circuit_tests": "circuit_tests", "faithfulness_curve": "faithfulness_curve", "summary": "summary",
    "difference": "effects", "load": "effects", "fit_probes": "fit_probes", "causal_check": "causal_check",
    "neuron_maps": "neuron_maps", "fit_tuned_lens": "fit_tuned_lens", "load_sweep": "load_sweep",
    "compare_sweeps": "compare_sweeps",
}  # fmt: skip
"""Every public function whose result has a picture, and the case below that shows it."""
NO_RESULT = set(
    (
        "add agreement capture capture_cost capture_pairs competent constant controls counterfactual_values "
        "discover discover_cost explain export from_store grid joint_scores load_model load_task mean metric model_fingerprint open_store planted planted_pairs plot project read_corpus "
        "repair report resample rule_stability run save scale specification_curve write_circuit run_sweep zero"
    ).split()
)
"""Those that return values, prompts, stores, models, files, plans, a folder of results to draw singly, or tables."""


@pytest.fixture(scope="module")
def lab():
    return made_with("tiny", "ioi", sizes=(40, 80))


@pytest.fixture(scope="module")
def small():
    """Of 81 edges, for what runs dozens of circuits."""
    return made_with("induction", "induction", sizes=(20, 40))


def made_with(name: str, task: str, *, sizes: tuple[int, int]):
    model = wb.load_model(name)
    pairs = wb.load_task(task, model, n=3)
    clean, corrupt = wb.capture_pairs(model, pairs)
    value = wb.from_store(corrupt)
    scores = wb.score_edges(model, pairs, value=value, keep=("example",))
    mean = scores.mean("example", keep_attrs=True)
    inputs = {"model": model, "pairs": pairs, "clean": clean, "value": value}
    return SimpleNamespace(
        **inputs,
        scores=scores,
        mean=mean,
        circuit=wb.find_circuit(mean, n_edges=sizes[0]),
        more=wb.find_circuit(mean, n_edges=sizes[1]),
    )


@pytest.fixture(scope="module")
def probed(lab):
    pairs = wb.load_task("agreement", lab.model, n=24)
    stores = wb.capture_pairs(lab.model, pairs)
    words = [lab.model.tokenizer.decode([int(a)]).strip() for a in pairs.answers[:, 0, 0]]
    values = {"plural": [w in ("are", "were") for w in words], "past": [w in ("was", "were") for w in words]}
    labels = wb.Labels.per_prompt(stores[0], values)
    options = {"sites": ["resid_post"], "k": [1, 4], "baselines": ["mass-mean"], "resampled": 20}
    return SimpleNamespace(
        pairs=pairs, stores=stores, labels=labels, probes=wb.fit_probes(stores[0], labels, **options)
    )


def words(figure: Figure) -> tuple[str, str]:
    """The axis words of the panels, x and y, each of which stands at the rim only."""
    return (
        next(axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()),
        next(axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()),
    )


def ticks(figure: Figure, which: str, panel: int = 0) -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[panel], f"get_{which}ticklabels")()]


def images(figure: Figure) -> int:
    return sum(bool(axes.images) for axes in figure.axes)


def targets(lab) -> dict:
    return {"targets": lab.pairs.answers, "minus": lab.pairs.wrong}


ARRAYS = {
    "effects": (
        lambda lab: wb.effects(lab.model, lab.pairs, sites=wb.grid("z", lab.model), value=wb.zero()),
        1,
        ("head", "layer"),
    ),
    "effects by position": (
        lambda lab: wb.effects(
            lab.model, lab.pairs, sites=wb.grid("z", lab.model, layer=[1, 2, 3], pos="each"), value=lab.value
        ),
        3,
        ("position (token)", "head"),
    ),
    "effects at named positions": (
        lambda lab: wb.effects(
            lab.model, lab.pairs, sites=wb.grid("z", lab.model, pos=["S2", "END"]), value=lab.value
        ),
        2,
        ("head", "layer"),
    ),
    "path_effects": (
        lambda lab: wb.path_effects(lab.model, lab.pairs, senders="heads", value=lab.value, mlps="frozen"),
        1,
        ("head", "layer"),
    ),
    "path_effects into several": (
        lambda lab: wb.path_effects(
            lab.model,
            lab.pairs,
            senders="heads",
            receivers=["a3.1<q>", "logits"],
            value=lab.value,
            mlps="frozen",
        ),
        2,
        ("head", "layer"),
    ),
    "logit_lens": (lambda lab: wb.logit_lens(lab.clean, lab.model, **targets(lab)), 0, ("layer", "logit")),
    "logit_lens of one prompt": (
        lambda lab: wb.logit_lens(lab.clean, lab.model, **targets(lab)).isel(example=0),
        1,
        ("position (token)", "layer"),
    ),
    "norms": (lambda lab: wb.norms(lab.clean), 0, ("layer", "norm")),
    "attention_to": (lambda lab: wb.attention_to(lab.clean, ["IO", "S1"]), 2, ("head", "layer")),
    "head_scores": (lambda lab: wb.head_scores(lab.clean), 3, ("head", "layer")),
    "copying_scores": (lambda lab: wb.copying_scores(lab.clean, lab.model), 1, ("head", "layer")),
    "direct_attribution": (
        lambda lab: wb.direct_attribution(lab.clean, lab.model, **targets(lab)),
        1,
        ("head", "layer"),
    ),
    "direct_attribution of positions": (
        lambda lab: wb.direct_attribution(lab.clean, lab.model, **targets(lab), by="component", pos="each"),
        1,
        ("position", "component"),
    ),
    "direct_attribution of components": (
        lambda lab: wb.direct_attribution(lab.clean, lab.model, **targets(lab), by="component"),
        0,
        ("component", "attribution (logits)"),
    ),
    "direct_attribution of neurons": (
        lambda lab: wb.direct_attribution(lab.clean, lab.model, **targets(lab), by="neuron"),
        0,
        ("neuron", "attribution (logits)"),
    ),
    "score_edges": (lambda lab: lab.scores, 1, ("reader", "writer")),
    "score_nodes": (lambda lab: wb.score_nodes(lab.model, lab.pairs, value=lab.value), 1, ("head", "layer")),
    "summary": (
        lambda lab: wb.summary(
            wb.effects(lab.model, lab.pairs, sites=wb.grid("z", lab.model), value=wb.zero())
        ),
        1,
        ("head", "layer"),
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_becomes_a_grid_or_bars_with_axis_words(lab, case):
    make, panels, labels = ARRAYS[case]
    result = make(lab)
    checked_card(result)
    figure = wb.plot(result, title=case)
    assert images(figure) == panels
    assert words(figure) == labels


CIRCUITS = {
    "evaluate": (
        lambda small: wb.evaluate(small.circuit, small.model, small.pairs, value=small.value),
        11,
    ),
    "evaluate several": (
        lambda small: wb.evaluate(
            [small.circuit, small.more], small.model, small.pairs, value=small.value, checks=()
        ),
        None,
    ),
    "evaluate on two values": (
        lambda small: wb.evaluate(
            small.circuit,
            small.model,
            small.pairs,
            value={"corrupt": small.value, "zero": wb.zero()},
            checks=["random"],
        ),
        8,
    ),
    "minimality": (
        lambda small: wb.minimality(small.circuit, small.model, small.pairs, value=small.value),
        None,
    ),
    "circuit_tests": (
        lambda small: wb.circuit_tests(small.circuit, small.model, small.pairs, value=small.value, draws=20),
        5,
    ),
    "compare": (
        lambda small: wb.compare(ioi := wb.reference_circuit("ioi"), wb.Circuit.full(ioi.graph)),
        5,
    ),
    "stability": (
        lambda small: wb.stability(small.scores, find=lambda s: wb.find_circuit(s, n_edges=30), draws=10),
        None,
    ),
    "faithfulness_curve": (
        lambda small: wb.faithfulness_curve(small.mean, small.model, small.pairs, value=small.value),
        None,
    ),
}


@pytest.mark.filterwarnings("ignore:circuit_tests. nothing to test")
@pytest.mark.parametrize("case", CIRCUITS)
def test_what_is_found_about_circuits_has_a_picture(small, case):
    make, rows = CIRCUITS[case]
    result = make(small)
    if case != "compare":
        checked_card(result)
    figure = wb.plot(result, title=case)
    assert isinstance(figure, Figure)
    if rows is not None:
        assert len(ticks(figure, "y")) == rows
    if case in ("evaluate", "circuit_tests", "faithfulness_curve"):  # a bar, a table and a line, drawn anew
        assert figure_html(figure) == figure_html(wb.plot(result, title=case))


def test_circuits_are_views_and_curves_of_methods_are_lines_with_bands(lab):
    assert isinstance(wb.plot(lab.circuit), CircuitView)
    curves = [
        wb.faithfulness_curve(lab.mean, lab.model, lab.pairs, value=lab.value, by=by)
        for by in ("signed", "magnitude")
    ]
    both = xr.concat(curves, "method", combine_attrs="drop_conflicts").assign_coords(method=["eap", "<b>"])
    axes = wb.plot(both).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["eap", "<b>"]
    assert len(axes.collections) == 2


def test_probes_and_neurons_and_the_tuned_lens(lab, probed):
    figure = wb.plot(probed.probes)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["plural", "past"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "mass-mean, all features"
    assert len(wb.plot(probed.probes.results).axes) == 2
    assert len(wb.plot(probed.probes.results.sel(concept="past")).axes) == 1
    options = {
        "concept": "plural",
        "kind": "resid_post",
        "stores": probed.stores,
        "baseline": "mass-mean",
        "layers": [1, 3],
        "n_random": 19,
    }
    check = wb.causal_check(probed.probes, lab.model, probed.pairs, **options)
    for shown in (check, probed.probes, probed.labels, probed.stores[0], probed.pairs):
        checked_card(shown)
    checked = wb.plot(check)
    assert [axes.get_title(loc="left") for axes in checked.axes] == ["erase", "swap"]
    assert ticks(checked, "x") == ["1", "3"]
    maps = wb.neuron_maps(probed.stores[0], probed.labels)
    checked_card(maps)
    neurons = wb.plot(maps)
    assert ticks(neurons, "x") == ["plural", "past"]
    assert len(ticks(neurons, "y")) == 24
    lens = wb.fit_tuned_lens(probed.stores[0], lab.model, epochs=1)
    for result in (lens, lens.heldout):
        axes = wb.plot(result).axes[0]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["logit", "tuned"]
        assert axes.get_ylabel() == "KL to the last layer (nats)"


def test_top_tokens_are_a_table_of_one_prompt(lab):
    lens = wb.top_tokens(lab.clean, lab.model, k=2)
    checked_card(lens)
    figure = wb.plot(lens)
    strings = lab.pairs.clean.strings[0]
    assert ticks(figure, "x") == [s.replace(" ", "·") for s in strings]
    texts = [text.get_text() for text in figure.axes[0].texts]
    n = len(strings)
    best = lab.model.tokenizer.decode([int(lens["token"][0, 0, n - 1, 0])]).strip()
    assert texts[n - 1].strip("·") == best
    assert any(text.startswith("tiny · example 0 of 3") for text in texts)
    assert ticks(wb.plot(lens.isel(example=1)), "x")[-1].strip("·") == lab.pairs.clean.strings[1][-1].strip()
    hostile = wb.plot(
        lens.assign_coords(text=(lens["text"].dims, np.full(lens["text"].shape, "\x00</svg>", dtype=object)))
    )
    assert hostile.axes[0].texts[0].get_text() == "\\x00</svg>"


def test_a_lens_is_a_grid_with_the_tokens_of_one_prompt_or_a_line_with_a_band(lab):
    lens = wb.logit_lens(lab.clean, lab.model, **targets(lab))
    own = wb.plot(lens.isel(example=1))
    assert [t.strip("·") for t in ticks(own, "x")] == [s.strip() for s in lab.pairs.clean.strings[1]]
    assert own.axes[0].get_xlabel() == "position (token)"
    line = wb.plot(lens.isel(pos=5)).axes[0]
    assert (line.get_xlabel(), line.get_ylabel()) == ("layer", "logit")
    np.testing.assert_allclose(line.lines[0].get_ydata(), lens.isel(pos=5).mean("example"), rtol=1e-5)
    assert len(line.collections) == 1


def test_patterns_get_a_panel_each_and_those_left_out_are_told(monkeypatch):
    # Each panel takes its time; the same is done with the 48 of `MOST_PANELS`.
    monkeypatch.setattr(grids, "MOST_PANELS", 8)
    values = np.random.default_rng(0).random((5, 2, 4, 4))
    dims = ("layer", "head", "query_pos", "key_pos")
    figure = wb.plot(
        xr.DataArray(values, dims=dims, name="pattern"), labels=["<bos>", " a", "</svg>", "\x00"]
    )
    assert images(figure) == 8
    assert figure.axes[3].get_title(loc="left") == "a1.1"
    assert ticks(figure, "x", 7) == ["<bos>", "·a", "</svg>", "\\x00"]
    told = " ".join(figure.get_supxlabel().split())
    assert told == "the first 8 of 10 panels; 2 left out: select them, as in .isel()"
    assert (
        len({axes.images[0].norm for axes in figure.axes if axes.images and axes.get_title(loc="left")}) == 1
    )
    hole = xr.DataArray(values, dims=dims)[:1]
    hole[0, 1, 1, 1] = np.nan
    assert np.ma.getmaskarray(heatmaps(hole).axes[1].images[0].get_array()).sum() == 1


def test_names_of_panels_drop_their_axis_where_they_would_be_cut():
    names = ["zero", "mean per position of all the prompts of the task"]
    table = xr.DataArray(np.ones((2, 4, 8)), dims=("ablation", "layer", "head"), coords={"ablation": names})
    titles = [axes.get_title(loc="left") for axes in wb.plot(table).axes[:2]]
    assert titles[0] == "zero"
    assert titles[1].startswith("mean per position")
    short = wb.plot(table.assign_coords(ablation=["zero", "mean"]))
    assert [axes.get_title(loc="left") for axes in short.axes[:2]] == ["ablation zero", "ablation mean"]


def test_rows_of_the_bench_and_scores_of_tasks_are_tables_and_bars(lab):
    rows = [
        Row(m, "t", "zero", method, x, x, x, x, x, x, x, x, x, x, 1.0, 1.0, 1)
        for m, x in (("a", 0.5), ("b", float("nan")))
        for method in ("eap", "exact")
    ]
    for table in (rows, pd.DataFrame([vars(row) for row in rows])):
        figure = wb.plot(table)
        assert [axes.get_title(loc="left") for axes in figure.axes] == [
            f"{n} is good)" for n in ("edge auroc (high", "cpr (high", "cmd (low")
        ]
        assert ticks(figure, "x") == ["eap", "exact"]
    numbers = wb.plot(pd.DataFrame({"x": [1.0, np.nan]}, index=["a", "b"]))
    assert [text.get_text() for text in numbers.axes[0].texts] == ["1.000", "not run"]
    scores = wb.measure(lab.model, n=4, progress=False)
    assert ticks(wb.plot(scores), "x") == [score.behaviour for score in scores]


def test_sweeps_and_what_differs_between_two(tmp_path):
    a = write_sweep(tmp_path / "a", [record(f"z[0.{i}]", [float(i), 1.0]) for i in range(3)])
    b = write_sweep(
        tmp_path / "b", [record(f"z[0.{i}]", [2.0 * i, 1.0], model="tiny@1000") for i in range(3)]
    )
    checked_card(wb.load_sweep(a))
    assert images(wb.plot(wb.load_sweep(a))) == 1
    axes = wb.plot(wb.compare_sweeps(a, b)).axes[0]
    assert ticks(axes.figure, "y") == ["z[0.0]", "z[0.1]", "z[0.2]"]
    assert axes.get_xlabel() == "difference of effects (logits)"
    assert axes.texts[0].get_text() == "model: tiny@1000 minus tiny · blue: above 0, orange: below"


def test_a_store_is_no_result_and_the_message_says_what_to_draw(lab):
    with pytest.raises(
        WorkbenchError,
        match=r"A .*Store cannot be drawn\. .* Draw what is computed from it, such as norms\(store\)",
    ):
        wb.plot(lab.clean)


def test_no_public_function_is_forgotten():
    functions = {name for name in wb.__all__ if inspect.isfunction(getattr(wb, name))}
    assert functions == set(PICTURES) | NO_RESULT
    shown = {case.split()[0] for case in (*ARRAYS, *CIRCUITS)}
    source = inspect.getsource(inspect.getmodule(test_no_public_function_is_forgotten))
    for name, case in PICTURES.items():
        assert case in shown or case == "circuit" or f"wb.{case}(" in source, name
