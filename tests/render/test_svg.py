"""The still pictures: valid, deterministic, safe, and true to the circuit."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from pictures import TOKENS

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.errors import CircuitError
from workbench.render.circuit.layered import layered
from workbench.render.circuit.layout import component_layout
from workbench.render.circuit.lines import alive, cut, hops_of, lines_of
from workbench.render.circuit.svg import CircuitView, draw, to_svg
from workbench.sites import Shape
from workbench.text import visible

KINDS = ("component", "position")
SVG = "{http://www.w3.org/2000/svg}"
ONE = Graph(Shape(2, 2, 2, 8, 4, 16, 50, 16))


def parse(text: str) -> ET.Element:
    return ET.fromstring(text.encode("utf-8"))


def drawn(text: str, style: str) -> list[ET.Element]:
    """Elements of a class, without those of the legend."""
    return [
        e
        for e in parse(text).iter()
        if style in e.get("class", "").split() and "y" not in e.get("class", "").split()
    ]


def scores_of(graph: Graph, **named: float) -> np.ndarray:
    scores = np.full(graph.exists.shape, np.nan)
    for edge, score in named.items():
        scores[graph.index(edge)] = score
    return scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["view", "hostile", "grouped_view", "large_view"])
def test_picture_is_valid_xml_and_always_the_same(name, kind, request):
    view = request.getfixturevalue(name)
    text = to_svg(view, kind=kind)
    assert text == to_svg(view, kind=kind)
    assert parse(text).tag == f"{SVG}svg"
    assert drawn(text, "e")


def test_every_edge_is_drawn_once_with_its_sign_and_width():
    edges = {"input->a0.1<v>": 1.0, "a0.1->m1": -2.0, "m1->logits": 4.0}
    circuit = Circuit.of(ONE, edges, scores=scores_of(ONE, **edges))
    paths = drawn(to_svg(CircuitView.of(circuit)), "e")
    assert [(p.get("class"), float(p.get("stroke-width"))) for p in paths] == [
        ("e p", 6.0),
        ("e m", 3.0),
        ("e p", 1.5),
    ]
    assert [p.find(f"{SVG}title").text for p in paths] == [
        "m1 → logits: +4",
        "a0.1 → m1: −2",
        "input → a0.1<v>: +1",
    ]


def test_edge_count_title_and_provenance(circuit, view):
    text = to_svg(CircuitView.of(circuit, top=1000, faithfulness=(0.87, 0.81, 0.92), title="Name mover"))
    assert len(drawn(text, "e")) == circuit.n_edges
    shown = " ".join(parse(text).itertext())
    for fact in (
        "Name mover",
        "model tiny",
        "data ioi (64 prompts)",
        "logit_diff (corrupt)",
        "eap",
        "0.87 [0.81, 0.92]",
    ):
        assert fact in shown
    assert view.nodes[0] == "input"
    assert view.nodes[-1] == "logits"


def test_circuit_without_scores_is_drawn_whole_in_one_width_and_a_neutral_colour(unscored):
    paths = drawn(to_svg(CircuitView.of(unscored, top=1)), "e")
    assert len(paths) == unscored.n_edges
    assert {(p.get("class"), p.get("stroke-width")) for p in paths} == {("e z", "1.5")}


@pytest.mark.parametrize("kind", KINDS)
def test_empty_circuit_says_so(kind):
    text = to_svg(CircuitView.of(Circuit.empty(Shape(2, 2, 2, 8, 4, 16, 50, 16))), kind=kind)
    assert "This circuit has no edges." in "".join(parse(text).itertext())


def test_position_view_without_scores_by_position_says_what_is_missing(circuit):
    assert "pass position_scores=" in to_svg(CircuitView.of(circuit), kind="position")


def test_top_keeps_about_that_many_edges_and_no_dead_ends(view):
    lines = lines_of(view, "component")
    for target in (1, 5, 20, len(lines)):
        n = cut(lines, target)
        kept = alive(lines[:n])
        assert kept
        assert alive(kept) == kept
        assert len(kept) <= target or not alive(lines[: n - 1])
        assert n == len(lines) or len(alive(lines[: n + 1])) > target


def test_dead_ends_are_dropped_as_the_graph_drops_them(circuit, grouped):
    for whole in (circuit, grouped):
        lines = lines_of(CircuitView.of(whole), "component")
        for n in (5, 15, 30):
            edges = np.zeros_like(whole.edges)
            names = [(e.writer, e.reader) for e in CircuitView.of(whole).edges]
            for line in lines[:n]:
                edges[whole.graph.index("->".join(names[line.edge]))] = True
            assert len(alive(lines[:n])) == int(whole.graph.prune(edges).sum())


def test_shared_kv_head_is_drawn_once():
    graph = Graph(Shape(1, 4, 2, 8, 4, 16, 50, 16))
    edges = {"input->a0.1<v>": 3.0, "a0.2->logits": 1.0, "a0.3->logits": 1.0}
    circuit = Circuit.of(graph, edges, scores=scores_of(graph, **edges))
    text = to_svg(CircuitView.of(circuit))
    assert len(drawn(text, "e")) == 3
    shown = list(parse(text).itertext())
    assert [shown.count(name) for name in ("kv0.1", "a0.2", "a0.3", "a0.1")] == [1, 1, 1, 0]


def test_attention_hop_joins_where_a_value_enters_to_where_the_head_writes():
    edges = {"input->a0.0<v>": 1.0, "a0.0->logits": 1.0}
    circuit = Circuit.of(ONE, edges, scores=scores_of(ONE, **edges))
    by_pos = np.full((*ONE.exists.shape, 4), np.nan)
    by_pos[(*ONE.index("input->a0.0<v>"), slice(None))] = [0, 1.0, 0.25, 0]
    by_pos[(*ONE.index("a0.0->logits"), slice(None))] = [0, 0, 0, 1.0]
    pattern = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], [0.05, 0.9, 0.04, 0.01]])
    scores = xr.DataArray(by_pos, dims=("writer", "reader", "pos"))
    view = CircuitView.of(circuit, tokens=list("abcd"), position_scores=scores, patterns={(0, 0): pattern})
    lines = lines_of(view, "position")
    assert [(h.start, h.end, h.weight) for h in hops_of(view, lines)] == [("a0.0@1", "a0.0@3", 0.9)]
    text = to_svg(view, kind="position")
    assert len(drawn(text, "h")) == 1
    assert "a0.0 attends from 3 to 1: 0.90" in text


def test_a_value_that_enters_after_the_head_wrote_is_a_dead_end():
    edges = {"input->a0.0<v>": 1.0, "a0.0->logits": 1.0}
    circuit = Circuit.of(ONE, edges, scores=scores_of(ONE, **edges))
    by_pos = np.full((*ONE.exists.shape, 3), np.nan)
    by_pos[(*ONE.index("input->a0.0<v>"), 2)] = 1.0
    by_pos[(*ONE.index("a0.0->logits"), 1)] = 1.0
    view = CircuitView.of(circuit, position_scores=xr.DataArray(by_pos, dims=("writer", "reader", "pos")))
    assert alive(lines_of(view, "position")) == []
    assert "No edge lies on a complete path" in to_svg(view, kind="position")


def test_hidden_and_forbidden_characters_are_spelled_out(hostile):
    text = to_svg(hostile, kind="position")
    assert "<img" not in text
    assert "<script" not in text
    shown = "".join(parse(text).itertext())
    for token in (r"\x00", r"\ud800", "👩‍🔬", "שלום", r"\u202e", r"\u2028", "&amp;<b>"):
        assert token in shown
    assert visible(" a\t") == r"·a\t"
    assert visible("") == "∅"
    assert visible("￾") == r"\ufffe"


@pytest.mark.parametrize(("kind", "kilobytes"), [("component", 75), ("position", 120)])
def test_large_circuit_stays_small(large_view, kind, kilobytes):
    assert len(large_view.edges) >= 200
    assert len(to_svg(large_view, kind=kind)) < 1000 * kilobytes


def test_long_prompt_leaves_out_runs_of_unused_tokens(circuit, view_of):
    view = view_of(circuit, [f"t{i}" for i in range(400)], top=20)
    width = float(parse(to_svg(view, kind="position")).get("width"))
    assert width < 4000


UNFIT = [
    (
        {"position_scores": xr.DataArray(np.zeros((2, 2)), dims=("writer", "reader"))},
        "position_scores has dims ('writer', 'reader'); (writer, reader, pos) of one prompt is needed. "
        "Select an example, as in scores.isel(example=0).",
    ),
    (
        {"position_scores": xr.DataArray(np.zeros((2, 2, 3)), dims=("writer", "reader", "pos"))},
        "position_scores belongs to another graph: its writers are not those of 2 layers of 2 heads, "
        "8 nodes, 46 edges.",
    ),
    (
        {"position_scores": xr.DataArray(np.zeros((*ONE.exists.shape, 5)), dims=("writer", "reader", "pos"))},
        "position_scores reaches position 4, but there are 3 tokens.",
    ),
    (
        {"patterns": {(0, 1): np.zeros((2, 2))}},
        "The pattern of a0.1 has shape (2, 2); one of [query_pos, key_pos] for a prompt of 3 tokens is "
        "needed. "
        "Select one example, as in pattern[example, head].",
    ),
]


def test_inputs_that_do_not_fit_are_refused():
    """Each message says what was given and what is needed, whole."""
    for arguments, message in UNFIT:
        with pytest.raises(CircuitError) as error:
            CircuitView.of(Circuit.full(ONE.shape), tokens=list("abc"), **arguments)
        assert str(error.value) == message, arguments


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        (Shape(2, 4, 4, 64, 16, 128, 50, 64), 20),
        (Shape(4, 8, 2, 128, 16, 512, 376, 64), 60),
        (Shape(12, 12, 12, 768, 64, 3072, 50257, 1024), 200),
        (Shape(32, 32, 8, 4096, 128, 11008, 32000, 2048), 120),
    ],
)
@pytest.mark.parametrize("kind", ["component", "position"])
def test_boxes_never_overlap_and_hold_their_labels(shape, n, kind, circuit_of, view_of):
    view = view_of(circuit_of(shape, n), TOKENS, top=n)
    boxes = draw(view, kind, alive(lines_of(view, kind)[: 2 * n])).boxes
    assert len(boxes) > 5
    for i, a in enumerate(boxes):
        assert 5.4 * len(a.label) <= a.w, f"{a.label} is wider than its box"
        for b in boxes[i + 1 :]:
            apart = abs(a.x - b.x) >= (a.w + b.w) / 2 - 0.5 or abs(a.y - b.y) >= (a.h + b.h) / 2 - 0.5
            assert apart, f"{a.key} and {b.key} overlap"


@pytest.mark.parametrize("token", ["W" * 14, "@" * 14, "x" * 500, "漢" * 14, "i"])
def test_labels_of_tokens_neither_overlap_nor_begin_outside(token, circuit, view_of):
    text = to_svg(view_of(circuit, [token] * 6), kind="position")
    labels = [e for e in drawn(text, "a") if (e.find(f"{SVG}title") is not None)]
    assert len(labels) == 6
    if token == "i":
        assert not any(e.get("transform") for e in labels)
        return
    wide = {"W": 0.944, "@": 1.015, "x": 0.5, "漢": 1.0}[token[0]] * 11 * 14
    for label in labels:
        x, y = map(float, label.get("transform").split("(")[1].split(")")[0].split(" "))
        assert x - 0.766 * wide > 0
    top = float(parse(text).get("height"))
    assert y + 0.643 * wide < top


def test_long_titles_and_names_are_cut_where_they_can_be_seen(circuit):
    for letter, em in (("T", 0.66), ("W", 1.0), ("i", 0.28)):
        title = next(e for e in drawn(to_svg(CircuitView.of(circuit, title=letter * 5000)), "t"))
        assert title.text.endswith("…")
        assert len(title.text) * em * 15 < float(parse(to_svg(CircuitView.of(circuit))).get("width")) - 16
    text = to_svg(CircuitView.compared(circuit, circuit, names=("A" * 500, "B" * 500)))
    legend = [e.text for e in parse(text).iter(f"{SVG}text") if (e.text or "").startswith("only in A")]
    assert legend[-1].endswith("…")
    assert len(legend[-1]) < 40


def test_edges_of_the_component_view_run_under_no_box(view):
    """A line that passes behind a box cannot be followed: each has a lane of its own through every row."""
    lines = alive(lines_of(view, "component"))
    layout = layered(component_layout(view, lines), lines, 1)
    assert layout.routes is not None
    for line, route in zip(lines, layout.routes, strict=True):
        for (x, y), (next_x, next_y) in pairwise(route):
            for box in layout.boxes:
                if box.key in (line.start, line.end):
                    continue
                for share in np.linspace(0, 1, 12):
                    # a cubic curve that leaves and arrives upright
                    at_x = x + (next_x - x) * share**2 * (3 - 2 * share)
                    at_y = y + (next_y - y) * share
                    is_in = abs(at_x - box.x) < box.w / 2 and abs(at_y - box.y) < box.h / 2
                    assert not is_in, f"{line} runs under {box.key}"


def test_boxes_of_a_row_do_not_touch_and_the_layout_is_the_same_every_time(view):
    lines = alive(lines_of(view, "component"))
    first, second = (layered(component_layout(view, lines), lines, 1) for _ in range(2))
    assert first == second
    rows = {}
    for box in first.boxes:
        rows.setdefault(box.y, []).append((box.x - box.w / 2, box.x + box.w / 2))
    for row in rows.values():
        assert all(right < left for (_, right), (left, _) in pairwise(sorted(row)))
