"""The graph: counted by hand, and pruning as a property against networkx."""

import json

import networkx as nx
import numpy as np
import pytest
from families import FAMILIES, NATIVES, model_of
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.arguments import shown
from workbench.circuit.graph import REST, Graph
from workbench.errors import SiteError
from workbench.sites import Edge, Shape


def shape_of(n_layers=2, n_heads=4, n_kv_heads=None, **more):
    return Shape(n_layers, n_heads, n_kv_heads or n_heads, 32, 8, 128, 50, 32, **more)


shapes = st.builds(
    lambda n_layers, heads, parallel, attn_only: shape_of(
        n_layers, *heads, parallel=parallel and not attn_only, attn_only=attn_only
    ),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (3, 3)]),
    st.booleans(),
    st.booleans(),
)


@st.composite
def edge_sets(draw):
    graph = Graph(draw(shapes))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return graph, graph.exists & (
        generator.random(graph.exists.shape) < draw(st.sampled_from([0.02, 0.1, 0.3, 0.7]))
    )


def test_gpt2_small_has_158_nodes_and_32491_edges():
    graph = Graph(Shape(12, 12, 12, 768, 64, 3072, 50257, 1024))
    assert (graph.n_nodes, graph.n_edges) == (158, 32_491)
    assert str(graph) == "12 layers of 12 heads, 158 nodes, 32491 edges"


@pytest.mark.parametrize(
    ("shape", "nodes", "edges", "text"),
    [
        # 12·1 readers of the input, then m0 sees 5 writers; 12·6, then m1 sees 10; the logits see 11
        (shape_of(), 12, 12 + 5 + 72 + 10 + 11, "2 layers of 4 heads, 12 nodes, 110 edges"),
        # (4 + 2 + 2)·1, 5, 8·6, 10, 11
        (shape_of(n_kv_heads=2), 12, 8 + 5 + 48 + 10 + 11, "2 layers of 4 heads (2 kv), 12 nodes, 82 edges"),
        # a parallel MLP sees what its heads see: 1 and 6 writers
        (shape_of(parallel=True), 12, 12 + 1 + 72 + 6 + 11, "2 layers of 4 heads, 12 nodes, 102 edges"),
        # no MLPs: 12·1, 12·5, 9
        (shape_of(attn_only=True), 10, 12 + 60 + 9, "2 layers of 4 heads, 10 nodes, 81 edges"),
        (shape_of(1, 1), 4, 3 + 2 + 3, "1 layers of 1 heads, 4 nodes, 8 edges"),
    ],
)
def test_small_graphs_have_the_edges_counted_by_hand(shape, nodes, edges, text):
    graph = Graph(shape)
    assert (graph.n_nodes, graph.n_edges) == (nodes, edges)
    assert str(graph) == text


def test_writers_and_readers_are_in_graph_order():
    graph = Graph(shape_of(2, 2, 1))
    assert graph.writers == ("input", "a0.0", "a0.1", "m0", "a1.0", "a1.1", "m1")
    assert graph.readers == (
        "a0.0<q>", "a0.1<q>", "a0.0<k>", "a0.0<v>", "m0", "a1.0<q>", "a1.1<q>", "a1.0<k>", "a1.0<v>", "m1", "logits",
    )  # fmt: skip
    assert Graph(shape_of(1, 2, attn_only=True)).writers == ("input", "a0.0", "a0.1")


@pytest.mark.parametrize(
    ("family", "edges"),
    [("gpt2", 110), ("llama", 82), ("neox", 102), ("native", 110), ("native-attn-only", 81)],
)
def test_models_have_the_graph_of_their_shape(family, edges):
    assert Graph.of(model_of(family)).n_edges == edges
    assert set(FAMILIES) | set(NATIVES) >= {family}


def test_an_edge_exists_when_the_writer_comes_first():
    graph = Graph(shape_of(2, 2, 1))
    assert graph.index("input->a0.0<q>") == (0, 0)
    assert graph.index(Edge("m1", "logits")) == (6, 10)
    assert graph.exists[graph.index("a0.1->m0")]
    with pytest.raises(SiteError) as error:
        graph.index("m0->a0.0<q>")
    assert str(error.value) == "Edge 'm0->a0.0<q>': m0 does not come before a0.0<q>."
    with pytest.raises(SiteError) as error:
        Graph(shape_of(parallel=True)).index("a1.0->m1")
    assert str(error.value) == "Edge 'a1.0->m1': a1.0 does not come before m1."
    with pytest.raises(SiteError) as error:
        graph.index("input->a0.1<k>")
    has = "It has 2 layers of 2 heads (1 kv), 8 nodes, 36 edges."
    assert str(error.value) == f"Edge 'input->a0.1<k>': this graph has no 'a0.1<k>'. {has}"
    with pytest.raises(SiteError):
        graph.index("a2.0->logits")
    with pytest.raises(SiteError):
        Graph(shape_of(attn_only=True)).index("input->m0")


def test_an_edge_at_one_position_is_no_edge_of_a_graph_without_positions():
    with pytest.raises(SiteError, match="position"):
        Graph(shape_of()).index("input->m0@3")


def paths(graph, edges):
    """Writers, readers, chosen edges, and which writer each reader feeds: a group of heads shares k and v."""
    built = nx.DiGraph()
    built.add_nodes_from([("writer", "input"), ("reader", "logits")])
    for u, v in np.argwhere(edges):
        built.add_edge(("writer", graph.writers[u]), ("reader", graph.readers[v]))
    group = graph.shape.n_heads // graph.shape.n_kv_heads
    for writer in graph.writers[1:]:
        if writer.startswith("m"):
            built.add_edge(("reader", writer), ("writer", writer))
        else:
            layer, head = writer[1:].split(".")
            for port, unit in (("q", int(head)), ("k", int(head) // group), ("v", int(head) // group)):
                built.add_edge(("reader", f"a{layer}.{unit}<{port}>"), ("writer", writer))
    return built


@given(edge_sets())
@settings(max_examples=60)
def test_pruning_keeps_exactly_the_edges_on_a_path_from_the_input_to_the_logits(drawn):
    graph, edges = drawn
    pruned = graph.prune(edges)
    assert not (pruned & ~edges).any()
    built = paths(graph, edges)
    reached = nx.descendants(built, ("writer", "input")) | {("writer", "input")}
    useful = nx.ancestors(built, ("reader", "logits")) | {("reader", "logits")}
    for u, v in np.argwhere(graph.exists):
        on_a_path = ("writer", graph.writers[u]) in reached and ("reader", graph.readers[v]) in useful
        assert pruned[u, v] == (edges[u, v] and on_a_path)


@given(edge_sets())
@settings(max_examples=30)
def test_pruning_twice_is_pruning_once_and_batches_are_pruned_apart(drawn):
    graph, edges = drawn
    pruned = graph.prune(edges)
    assert (graph.prune(pruned) == pruned).all()
    batch = graph.prune(np.stack([edges, graph.exists, edges & False]))
    assert (batch[0] == pruned).all()
    assert (batch[1] == graph.exists).all()
    assert not batch[2].any()


def test_the_full_graph_is_not_pruned_and_edges_that_do_not_exist_never_come_in():
    for shape in (shape_of(), shape_of(n_kv_heads=2), shape_of(parallel=True), shape_of(attn_only=True)):
        graph = Graph(shape)
        assert (graph.prune(graph.exists) == graph.exists).all()
        assert (graph.prune(np.ones_like(graph.exists)) == graph.exists).all()


def test_a_query_head_lives_by_its_own_query_or_by_its_groups_key_or_value():
    graph = Graph(shape_of(1, 4, 2, attn_only=True))
    edges = np.zeros_like(graph.exists)
    for edge in (
        "input->a0.1<v>",
        "a0.2->logits",
        "a0.1->logits",
        "input->a0.0<q>",
        "a0.0->logits",
        "input->a0.3<q>",
    ):
        edges[graph.index(edge)] = True
    kept = {f"{graph.writers[u]}->{graph.readers[v]}" for u, v in np.argwhere(graph.prune(edges))}
    # heads 2 and 3 share kv head 1; head 1 gets nothing, head 3 is read by nobody
    assert kept == {"input->a0.1<v>", "a0.2->logits", "input->a0.0<q>", "a0.0->logits"}


# ---- positions and neurons


def test_positions_multiply_the_edges_and_neurons_split_the_mlps():
    plain = Graph(shape_of(2, 2, 1))
    # (2 + 1 + 1)·1, 3, 4·4, 6, 7
    assert plain.n_edges == 4 + 3 + 16 + 6 + 7 == 36
    placed = Graph.of(plain.shape, positions=["S2", 4])
    assert placed.positions == ("S2", 4, REST)
    assert placed.exists.shape == (3, 7, 11)
    assert (placed.exists == plain.exists).all()
    assert (placed.n_edges, placed.n_nodes, placed.whole) == (3 * 36, 8, plain)
    assert str(placed) == "2 layers of 2 heads (1 kv), 8 nodes, 108 edges at S2, 4, rest"
    small = Shape(2, 1, 1, 8, 8, 3, 9, 9)
    split = Graph.of(small, neurons=0)
    assert split.writers == ("input", "a0.0", "m0:0", "m0:1", "m0:2", "a1.0", "m1")
    assert split.readers[3:6] == split.writers[2:5]
    # 3·1 into a0.0; 3·2 into the neurons; 3·5 into a1.0; 6 into m1; 7 into the logits
    assert split.n_edges == 3 + 6 + 15 + 6 + 7
    assert (split.n_nodes, split.neurons) == (8, (0,))
    assert not split.exists[split.writer_index["m0:0"], split.reader_index["m0:1"]], (
        "neurons of a layer do not feed each other"
    )
    # 3·1, 3·2, 3·5, 3·6, 9
    assert Graph.of(small, neurons=True).n_edges == 3 + 6 + 15 + 18 + 9
    assert Graph.of(small, neurons=True, positions=0).n_edges == 2 * 51
    parallel = Graph.of(Shape(1, 1, 1, 8, 8, 2, 9, 9, parallel=True), neurons=True)
    assert parallel.n_edges == 3 + 2 + 4


def test_positions_are_given_in_any_form_and_named_once():
    shape = shape_of()
    assert Graph.of(shape, positions="END").positions == ("END", REST)
    assert Graph.of(shape, positions=3) == Graph.of(shape, positions=np.array([3, 3]))
    assert Graph.of(shape, positions=Graph.of(shape, positions=[2, "END"]).positions).positions == (
        2,
        "END",
        REST,
    )
    assert Graph.of(shape, positions=None) == Graph.of(shape, neurons=[]) == Graph(shape)
    assert (
        Graph.of(shape, neurons=[1, 0, 1])
        == Graph.of(shape, neurons=True)
        == Graph.of(shape, neurons=np.array([0, 1]))
    )


@pytest.mark.parametrize(
    "more",
    [{}, {"positions": [3, "END"]}, {"neurons": [1]}, {"positions": "S2", "neurons": True}, {"neurons": [0]}],
)
def test_a_graph_survives_json(more):
    graph = Graph.of(shape_of(n_kv_heads=2), **more)
    facts = json.loads(json.dumps(graph.to_dict()))
    assert Graph.from_dict(facts) == graph
    assert hash(Graph.from_dict(facts)) == hash(graph)
    assert ("positions" in facts, "neurons" in facts) == ("positions" in more, "neurons" in more)


@pytest.mark.parametrize(
    "wrong", [{"positions": []}, {"positions": ["END"]}, {"positions": [True, REST]}, {"neurons": [1.0]}]
)
def test_facts_of_no_graph_are_refused(wrong):
    with pytest.raises(SiteError):
        Graph.from_dict(Graph(shape_of()).to_dict() | wrong)


@pytest.mark.parametrize("wrong", [-1, True, 1.5, None, "a b", "", "2", ("END",), np.zeros((2, 2))])
def test_what_is_no_position_is_refused(wrong):
    with pytest.raises(SiteError) as error:
        Graph.of(shape_of(), positions=[wrong])
    assert (
        str(error.value)
        == f"{shown(wrong)} is not a position of a graph: give indices from 0 up, or names such as 'END'."
    )


def test_a_graph_of_nothing_but_the_rest_is_refused():
    for nothing in ([], [REST], REST):
        with pytest.raises(SiteError) as error:
            Graph.of(shape_of(), positions=nothing)
        assert str(error.value) == (
            "A graph with positions needs one beside 'rest', which is every other token; "
            "positions=None tells none apart."
        )
    for odd in ((3,), (REST, 3), (3, 3, REST)):
        with pytest.raises(SiteError) as error:
            Graph(shape_of(), odd)
        assert (
            str(error.value)
            == f"The positions {odd} of a graph must differ and end with 'rest': use Graph.of(...)."
        )


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [([2], "(2,)"), ([-1], "(-1,)"), ("0", "('0',)"), ([0.5], "(0.5,)"), (None, "(None,)")],
)
def test_neurons_of_a_layer_that_is_none_are_refused(wrong, shown):
    with pytest.raises(SiteError) as error:
        Graph.of(shape_of(), neurons=wrong)
    assert str(error.value) == f"neurons={shown}: this model has MLPs in layers 0 to 1."


def test_neurons_of_a_model_without_mlps_are_refused():
    with pytest.raises(SiteError) as error:
        Graph.of(shape_of(attn_only=True), neurons=True)
    assert str(error.value) == "neurons=(0, 1): this model has MLPs in no layer."


def test_an_edge_at_a_position_is_one_cell_and_one_without_is_every():
    graph = Graph.of(shape_of(2, 2, 1), positions=["S2", 4])
    assert graph.index("input->m0@4") == (1, 0, 4)
    assert graph.index("input->m0@rest") == (2, 0, 4)
    assert graph.exists[graph.index("input->m0")].shape == (3,)
    with pytest.raises(SiteError) as error:
        graph.index("input->m0@END")
    assert str(error.value) == "Edge 'input->m0@END': this graph's positions are S2, 4, rest."
    one = np.zeros_like(graph.exists)
    one[graph.index("a0.1->logits@S2")] = True
    assert list(graph.edges(one)) == [Edge("a0.1", "logits", "S2")]


@st.composite
def finer_edge_sets(draw):
    """Edges of graphs with positions and neurons of small models."""
    shape = draw(shapes)
    shape = Shape(
        shape.n_layers,
        shape.n_heads,
        shape.n_kv_heads,
        8,
        4,
        2,
        9,
        9,
        parallel=shape.parallel,
        attn_only=shape.attn_only,
    )
    places = draw(st.lists(st.sampled_from([0, 1, 3, "S2", "END"]), min_size=1, max_size=3, unique=True))
    layers = [] if shape.attn_only else draw(st.lists(st.integers(0, shape.n_layers - 1), unique=True))
    graph = Graph.of(shape, positions=places, neurons=layers)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return graph, graph.exists & (
        generator.random(graph.exists.shape) < draw(st.sampled_from([0.02, 0.1, 0.3]))
    )


def placed_paths(graph, edges):
    """As `paths`, of nodes at classes of positions: a head's keys and values come from every class that it
    may see.
    """
    built = nx.DiGraph()
    group = graph.shape.n_heads // graph.shape.n_kv_heads
    for p, u, v in np.argwhere(edges):
        built.add_edge(("writer", graph.writers[u], p), ("reader", graph.readers[v], p))
    for q, query in enumerate(graph.positions):
        built.add_edge("start", ("writer", "input", q))
        built.add_edge(("reader", "logits", q), "end")
        seen = [
            k
            for k, key in enumerate(graph.positions)
            if not (isinstance(key, int) and isinstance(query, int) and key > query)
        ]
        for writer in graph.writers[1:]:
            if writer.startswith("m"):
                built.add_edge(("reader", writer, q), ("writer", writer, q))
                continue
            layer, head = writer[1:].split(".")
            built.add_edge(("reader", f"a{layer}.{head}<q>", q), ("writer", writer, q))
            for k in seen:
                for port in "kv":
                    built.add_edge(
                        ("reader", f"a{layer}.{int(head) // group}<{port}>", k), ("writer", writer, q)
                    )
    return built


@given(finer_edge_sets())
@settings(max_examples=40)
def test_pruning_with_positions_keeps_exactly_the_edges_on_a_path(drawn):
    graph, edges = drawn
    pruned = graph.prune(edges)
    built = placed_paths(graph, edges)
    reached, useful = nx.descendants(built, "start"), nx.ancestors(built, "end")
    expected = np.zeros_like(edges)
    for p, u, v in np.argwhere(edges):
        expected[p, u, v] = ("writer", graph.writers[u], p) in reached and (
            "reader",
            graph.readers[v],
            p,
        ) in useful
    assert (pruned == expected).all()
    batch = graph.prune(np.stack([edges, graph.exists, pruned]))
    assert (batch == np.stack([pruned, graph.exists, pruned])).all()


def test_a_query_does_not_see_a_later_token():
    graph = Graph.of(shape_of(1, 1, attn_only=True), positions=[1, 4])
    edges = np.zeros_like(graph.exists)
    for edge in ("input->a0.0<v>@4", "a0.0->logits@1", "a0.0->logits@4"):
        edges[graph.index(edge)] = True
    assert set(map(str, graph.edges(graph.prune(edges)))) == {"input->a0.0<v>@4", "a0.0->logits@4"}
    edges[graph.index("input->a0.0<v>@rest")] = True
    assert (graph.prune(edges) == edges).all(), "a token of the rest may come before any other"


@given(finer_edge_sets(), st.integers(0, 2**32))
@settings(max_examples=30)
def test_the_edges_between_components_are_those_whose_ends_are_inside(drawn, seed):
    for graph in (drawn[0], drawn[0].whole):
        writers = np.random.default_rng(seed).random((2, len(graph.writers))) < 0.5
        pruned = graph.between(writers)
        group = graph.shape.n_heads // graph.shape.n_kv_heads
        for inside, edges in zip(writers, pruned, strict=True):
            names = {
                "input",
                "logits",
                *(name for name, ours in zip(graph.writers, inside, strict=True) if ours),
            }
            expected = np.zeros_like(graph.exists)
            for edge in graph.edges():
                reader, port = edge.reader.split("<")[0], edge.reader[-2] if "<" in edge.reader else ""
                readers = {reader}
                if port in ("k", "v"):
                    layer, unit = reader[1:].split(".")
                    readers = {f"a{layer}.{int(unit) * group + i}" for i in range(group)}
                expected[graph.index(edge)] = edge.writer in names and not readers.isdisjoint(names)
            assert (edges == expected).all()
