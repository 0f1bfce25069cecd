"""The graph: counted by hand, and pruning as a property against networkx."""

import networkx as nx
import numpy as np
import pytest
from families import FAMILIES, NATIVES, model_of
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import SiteError
from workbench.graph import Graph
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
    return graph, graph.exists & (generator.random(graph.exists.shape) < draw(st.sampled_from([0.02, 0.1, 0.3, 0.7])))


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
    ("family", "edges"), [("gpt2", 110), ("llama", 82), ("neox", 102), ("native", 110), ("native-attn-only", 81)]
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
    """Writers, readers, chosen edges, and what each reader is an input of: k and v belong to a group of heads."""
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
@settings(max_examples=60, deadline=None)
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
@settings(max_examples=30, deadline=None)
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
    for edge in ("input->a0.1<v>", "a0.2->logits", "a0.1->logits", "input->a0.0<q>", "a0.0->logits", "input->a0.3<q>"):
        edges[graph.index(edge)] = True
    kept = {f"{graph.writers[u]}->{graph.readers[v]}" for u, v in np.argwhere(graph.prune(edges))}
    # heads 2 and 3 share kv head 1; head 1 gets nothing, head 3 is read by nobody
    assert kept == {"input->a0.1<v>", "a0.2->logits", "input->a0.0<q>", "a0.0->logits"}
