"""Sites, edges and grids: one string form, and errors that say what exists."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import SiteError, UnknownName
from workbench.sites import KINDS, Edge, Grid, Node, Shape, Site, grid

SHAPE = Shape(4, 8, 8, 128, 16, 512, 378, 64)
GQA = Shape(5, 8, 4, 64, 8, 172, 512, 512, learned_positions=False)
POSITION = st.none() | st.integers(0, 99) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    layer = draw(st.integers(0, 99)) if kind.per_layer else None
    head = draw(st.none() | st.integers(0, 99)) if kind.unit in ("head", "kv_head") else None
    neuron = draw(st.none() | st.integers(0, 9999)) if kind.unit == "neuron" else None
    key_pos = draw(POSITION) if kind.name == "pattern" else None
    return Site(kind.name, layer, head, neuron, draw(POSITION), key_pos)


@given(sites())
def test_a_site_survives_its_string_form(site: Site):
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize(
    "text",
    [
        "z[9.6]",
        "z[9.6]@END",
        "resid_pre[4]@3",
        "mlp_post[2:113]",
        "pattern[5.2]@7<-3",
        "pattern[5.2]@<-S2",
        "embed@0",
        "logits",
    ],
)
def test_the_documented_forms_parse(text: str):
    assert str(Site.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "z",
        "z[",
        "z[1.2]]",
        "z[01.2]",
        "z[-1.0]",
        "z[1.2]@",
        "z[1.2]@-1",
        "embed[0]",
        "z[1:3]",
        "logits<-2",
    ],
)
def test_what_is_no_site_is_refused(text: str):
    with pytest.raises(SiteError):
        Site.parse(text)


def test_an_unknown_kind_is_named_with_its_nearest_match():
    with pytest.raises(UnknownName) as caught:
        Site.parse("resid_prr[3]")
    assert str(caught.value).startswith("kind='resid_prr' is not known. Did you mean 'resid_pre'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("z[9.6]", "Site 'z[9.6]': this model has layers 0 to 3."),
        ("z[3.8]", "Site 'z[3.8]': this model has heads 0 to 7 in a layer."),
        ("mlp_post[0:512]", "Site 'mlp_post[0:512]': this model has neurons 0 to 511 in a layer."),
    ],
)
def test_a_site_that_the_model_lacks_says_what_it_has(text: str, message: str):
    with pytest.raises(SiteError, match="^" + re.escape(message) + "$"):
        Site.parse(text).check(SHAPE)


def test_with_grouped_queries_k_has_kv_heads():
    with pytest.raises(
        SiteError, match=re.escape("Site 'k[0.4]': this model has kv heads 0 to 3 in a layer.")
    ):
        Site.parse("k[0.4]").check(GQA)
    with pytest.raises(
        SiteError,
        match=re.escape("this model has no pos_embed, because its positions are not learned embeddings."),
    ):
        Site.parse("pos_embed").check(GQA)
    assert grid("k", GQA).dims == ("layer", "kv_head")
    assert len(grid("k", GQA)) == 20


def test_a_grid_knows_its_axes():
    cells = grid("z", SHAPE, layer=[1, 2], head=3, pos=["S2", "END"])
    assert isinstance(cells, Grid)
    assert cells.coords == {"layer": (1, 2), "head": (3,), "pos": ("S2", "END")}
    assert [str(site) for site in cells] == ["z[1.3]@S2", "z[1.3]@END", "z[2.3]@S2", "z[2.3]@END"]
    assert grid("resid_pre", SHAPE, pos="each").at_length(3).coords["pos"] == (0, 1, 2)
    assert grid("pattern", SHAPE, pos=[4], key_pos=[1, 2]).dims == ("layer", "head", "query_pos", "key_pos")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "z", "layer": []},
            "grid('z') is empty: name at least one layer, head, neuron and position, or leave them out.",
        ),
        ({"kind": "resid_pre", "head": 1}, "grid('resid_pre'): resid_pre has no heads."),
        ({"kind": "embed", "layer": 0}, "grid('embed'): embed belongs to no layer."),
        ({"kind": "z", "layer": 4}, "Site 'z[4.0]': this model has layers 0 to 3."),
    ],
)
def test_a_grid_of_nothing_is_an_error(arguments: dict, message: str):
    with pytest.raises(SiteError, match="^" + re.escape(message) + "$"):
        grid(arguments.pop("kind"), SHAPE, **arguments)


@pytest.mark.parametrize(
    "text",
    ["a9.9->a10.7<q>", "m3->logits", "input->a0.1<k>", "m3:113->m4:7", "a1.2->m3@END", "input->logits@0"],
)
def test_edges_survive_their_string_form(text: str):
    assert str(Edge.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a9.9->a10.7", "'a10.7' is three readers: write a10.7<q>, a10.7<k> or a10.7<v>."),
        ("logits->m3", "'logits' is not a writer. Writers: input, a9.6, m3, m3:113."),
        ("a1.2<q>->m3", "'a1.2<q>' is not a writer. Writers: input, a9.6, m3, m3:113."),
        ("m3->input", "'input' is not a reader. Readers: a9.6<q>, a9.6<k>, a9.6<v>, m3, m3:113, logits."),
        (
            "m3>m4",
            "'m3>m4' is not an edge. Write WRITER->READER, then @POSITION if one is meant: a9.9->a10.7<q>@END.",
        ),
        ("x3->m4", "'x3' is not a node. Nodes: input, a9.6, a9.6<q>, m3, m3:113, logits."),
    ],
)
def test_what_is_no_edge_is_refused(text: str, message: str):
    with pytest.raises(SiteError, match="^" + re.escape(message) + "$"):
        Edge.parse(text)


def test_the_kinds_are_those_of_the_field():
    assert " ".join(KINDS) == (
        "embed pos_embed resid_pre resid_mid resid_post attn_out mlp_out q k v z pattern mlp_pre mlp_post logits"
    )


@given(
    st.sampled_from(["input", "logits"])
    | st.builds("a{}.{}{}".format, st.integers(0, 99), st.integers(0, 99), st.sampled_from(["", "<q>", "<k>", "<v>"]))
    | st.builds("m{}{}".format, st.integers(0, 99), st.just("") | st.integers(0, 9999).map(":{}".format))
)  # fmt: skip
def test_a_node_survives_its_string_form(text: str):
    assert str(Node.parse(text)) == text


def test_a_node_knows_its_component():
    key = Node.parse("a5.2<k>")
    assert (key.kind, key.layer, key.head, key.port) == ("head", 5, 2, "k")
    assert str(key.component) == "a5.2"
    assert key.layer_and_head == (5, 2)
    neuron = Node.parse("m3:113")
    assert (neuron.is_mlp, neuron.is_head, neuron.layer, neuron.neuron) == (True, False, 3, 113)
    with pytest.raises(SiteError, match=re.escape("'m3:113' is not a head. Heads: a9.6.")):
        neuron.layer_and_head  # noqa: B018


def test_what_is_no_node_is_refused():
    for text in (
        "",
        "a3",
        "a3.",
        "a03.1",
        "a3.4<z>",
        "m3<q>",
        "input<q>",
        "logits@0",
        "m3:",
        "kv3.1",
        "a3.4@END",
    ):
        message = f"{text!r} is not a node. Nodes: input, a9.6, a9.6<q>, m3, m3:113, logits."
        with pytest.raises(SiteError) as caught:
            Node.parse(text)
        assert str(caught.value) == message
