"""Places in a transformer, and their names. A site says *where*; it never knows what is done there.

Read `Site`, then `grid`; `Node` and `Edge` are those of `nodes.py`, `KINDS` is that of `kinds.py`. Sites, edges and nodes have one string form each, which one parser reads:
`z[9.6]`, `z[9.6]@END`, `resid_pre[4]@3`, `mlp_post[2:113]`, `pattern[5.2]@7<-3`; `a9.9->a10.7<q>`; `a9.6<q>`.
"""

import operator
import re
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal

from workbench.arguments import checked
from workbench.errors import SiteError
from workbench.kinds import KINDS as KINDS
from workbench.kinds import WORDS as WORDS
from workbench.kinds import Kind as Kind
from workbench.kinds import kind_named as kind_named
from workbench.names import KindName
from workbench.nodes import NUMBER, POSITION, as_position, is_position
from workbench.nodes import Edge as Edge
from workbench.nodes import Node as Node
from workbench.nodes import Position as Position
from workbench.nodes import split_position as split_position

Key = tuple[str, int | None]
"""Which whole activation: (kind, layer)."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder that decide which sites and edges it has.

    Attributes:
        joint_heads: whether queries or keys are normed over all heads together (OLMo 2, OLMoE), so that each
            head's depend on those of the others.
        experts: the layers whose MLP is a mixture of experts, which has no neurons of its own. Not compared:
            circuits of whole MLPs do not depend on it, and their files do not say it.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    parallel: bool = False
    attn_only: bool = False
    learned_positions: bool = True
    causal: bool = True
    joint_heads: bool = False
    experts: tuple[int, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_vocab", "n_ctx"):
            number = getattr(self, name)
            # `type`, since True is an int too.
            if type(number) is not int or number < 1:
                raise SiteError(
                    f"A model of {name}={number!r} is not possible: it must be a positive integer."
                )
        # Mixtures of experts have no single width.
        if self.d_mlp is not None and (type(self.d_mlp) is not int or self.d_mlp < 0):
            raise SiteError(
                f"A model of d_mlp={self.d_mlp!r} is not possible: it must be an integer from 0 up."
            )
        for name in ("parallel", "attn_only", "learned_positions", "causal", "joint_heads"):
            if type(getattr(self, name)) is not bool:
                raise SiteError(f"{name}={getattr(self, name)!r} of a Shape must be True or False.")
        if not isinstance(self.experts, tuple) or not all(type(layer) is int for layer in self.experts):
            raise SiteError(f"experts={self.experts!r} of a Shape must be a tuple of layers.")
        if self.n_heads % self.n_kv_heads:
            raise SiteError(f"{self.n_heads} heads cannot share {self.n_kv_heads} kv heads equally.")

    @classmethod
    def of(cls, model: Any) -> "Shape":
        """The shape of a `TransformerBridge`; a `Shape` passes through."""
        if isinstance(model, Shape):
            return model
        cfg = getattr(model, "cfg", None)
        if cfg is None or getattr(cfg, "n_layers", None) is None:
            raise SiteError(
                f"A model or a Shape was expected, not {type(model).__name__}. "
                "Load one with wb.load_model(...)."
            )
        # Configurations of TransformerLens 4.3 lack what their architecture does not have.
        attn_only = bool(getattr(cfg, "attn_only", False))
        return cls(
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            n_kv_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
            d_model=cfg.d_model,
            d_head=cfg.d_head,
            d_mlp=0 if attn_only else cfg.d_mlp,
            d_vocab=cfg.d_vocab,
            n_ctx=cfg.n_ctx,
            parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
            attn_only=attn_only,
            learned_positions=getattr(cfg, "positional_embedding_type", "standard") == "standard",
            causal=getattr(cfg, "attention_dir", "causal") == "causal",
            **_facts_of_blocks(model),
        )

    @property
    def group(self) -> int:
        """How many query heads share a kv head."""
        return self.n_heads // self.n_kv_heads

    def units(self, kind: Kind) -> int:
        """How many heads, kv heads or neurons a layer has of this kind; 0 where it has no such axis."""
        counts = {"head": self.n_heads, "kv_head": self.n_kv_heads, "neuron": self.d_mlp, None: 0}
        return counts[kind.unit]

    def layers(self, kind: Kind) -> tuple[int, ...]:
        """The layers that have this kind; of a kind that the whole model lacks, all of them."""
        without = self.experts if kind.unit == "neuron" and not self.lacks(kind) else ()
        return tuple(layer for layer in range(self.n_layers) if layer not in without)

    def lacks(self, kind: Kind) -> str | None:
        """Why a model of this shape has no such site, or None when it has."""
        # Rotary positions, for one, act inside attention: nothing is added to the stream.
        if kind.name == "pos_embed" and not self.learned_positions:
            return "its positions are not learned embeddings"
        if self.attn_only and kind.name in ("mlp_out", "mlp_pre", "mlp_post", "resid_mid"):
            return "it has no MLPs"
        if self.parallel and kind.name == "resid_mid":
            return "its attention and MLP run in parallel, so there is no stream between them"
        if kind.unit == "neuron" and len(self.experts) == self.n_layers:
            return "its MLPs are mixtures of experts, which have no neurons of their own"
        return None


# What `_facts_of_blocks` read of each model; weak keys, so that it keeps no model alive.
_blocks_known: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()


def _facts_of_blocks(model: Any) -> dict[str, Any]:
    """`joint_heads` and `experts` of a model, looked up once: shapes are asked for all the time."""
    if model not in _blocks_known:
        blocks = [dict(block.named_children()) for block in getattr(model, "blocks", ())]
        experts = [layer for layer, block in enumerate(blocks) if _is_mixture(block.get("mlp"))]
        joint = any(_norms_heads_together(block.get("attn"), model.cfg.d_head) for block in blocks)
        _blocks_known[model] = {"joint_heads": joint, "experts": tuple(experts)}
    return _blocks_known[model]


def _is_mixture(mlp: Any) -> bool:
    """Whether what TransformerLens 4.3 calls the MLP's neurons is its whole output, as it is for experts."""
    return getattr(mlp, "hook_aliases", {}).get("hook_post") == "hook_out"


def _norms_heads_together(attn: Any, d_head: int) -> bool:
    """Whether its queries or keys pass one norm of all heads, and not one norm for each head."""
    children = dict(attn.named_children()) if attn is not None else {}
    for name in ("q_norm", "k_norm"):
        norm = children.get(name)
        weight = getattr(getattr(norm, "original_component", norm), "weight", None)
        if weight is not None and weight.ndim == 1 and len(weight) > d_head:
            return True
    return False


_SITE = re.compile(
    rf"(?P<kind>\w+)(?:\[(?P<layer>{NUMBER})(?:\.(?P<head>{NUMBER})|:(?P<neuron>{NUMBER}))?\])?"
    rf"(?:@(?=.)(?P<pos>{POSITION})?(?:<-(?P<key_pos>{POSITION}))?)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Site:
    """An activation, or a part of one: what is read, edited or patched.

    Attributes:
        kind: one of `KINDS`.
        layer: None for the kinds that belong to no layer.
        head, neuron: one of them; None: all. For k and v of grouped-query models `head` is the kv head.
        pos: an index or a name; None: the whole sequence. For `pattern` it is the query position.
        key_pos: the key position of `pattern`.

    >>> Site.parse("z[9.6]@END")
    Site('z[9.6]@END')
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None
    pos: Position | None = None
    key_pos: Position | None = None

    def __post_init__(self) -> None:
        kind = kind_named(self.kind)
        if kind.per_layer != (self.layer is not None):
            need = f"needs a layer, as in {kind.name}[0]" if kind.per_layer else "belongs to no layer"
            raise SiteError(f"Site {str(self)!r}: {kind.name} {need}.")
        if self.head is not None and kind.unit not in ("head", "kv_head"):
            raise SiteError(
                f"Site {str(self)!r}: {kind.name} has no heads. Kinds with heads: q, k, v, z, pattern."
            )
        if self.neuron is not None and kind.unit != "neuron":
            raise SiteError(
                f"Site {str(self)!r}: {kind.name} has no neurons. Kinds with neurons: mlp_pre, mlp_post."
            )
        numbers = {"layer": self.layer, "head": self.head, "neuron": self.neuron}
        wrong = [
            name
            for name, number in numbers.items()
            if number is not None and (type(number) is not int or number < 0)
        ]
        if wrong:
            raise SiteError(f"Site {str(self)!r}: {wrong[0]} must be a whole number from 0 up.")
        for pos in (self.pos, self.key_pos):
            if pos is not None and not is_position(pos):
                raise SiteError(
                    f"Site {self.kind}: {pos!r} is not a position. Positions are whole numbers from 0 up, or "
                    "names such as 'END'."
                )
        if self.key_pos is not None and kind.name != "pattern":
            raise SiteError(f"Site {str(self)!r}: only pattern has key positions.")

    @classmethod
    @checked
    def parse(cls, text: str) -> "Site":
        """The site of a string form.

        Raises:
            SiteError: the text is not a site; the message shows the grammar.
            UnknownName: no such kind.
        """
        match = _SITE.fullmatch(text.strip())
        if match is None:
            raise SiteError(
                f"{text!r} is not a site. Write KIND[layer], KIND[layer.head] or KIND[layer:neuron], "
                "then @POSITION if one position is meant: z[9.6]@END, mlp_post[2:113], pattern[5.2]@7<-3."
            )
        groups = match.groupdict()
        kind = groups.pop("kind")
        fields: dict[str, Any] = {
            name: as_position(text) for name, text in groups.items() if text is not None
        }
        return cls(kind, **fields)

    def __str__(self) -> str:
        text = self.kind
        if self.head is not None:
            text += f"[{self.layer}.{self.head}]"
        elif self.neuron is not None:
            text += f"[{self.layer}:{self.neuron}]"
        elif self.layer is not None:
            text += f"[{self.layer}]"
        if self.pos is not None or self.key_pos is not None:
            text += "@"
        if self.pos is not None:
            text += str(self.pos)
        if self.key_pos is not None:
            text += f"<-{self.key_pos}"
        return text

    def __repr__(self) -> str:
        return f"Site({str(self)!r})"

    @property
    def key(self) -> Key:
        """The whole activation that it is a part of."""
        return self.kind, self.layer

    @property
    def unit(self) -> int | None:
        """The head or neuron, whichever the kind has."""
        return self.neuron if self.head is None else self.head

    @property
    def hook(self) -> str:
        """TransformerLens' name of the hook point."""
        return KINDS[self.kind].hook.format(layer=self.layer)

    def check(self, model_or_shape: Any) -> "Site":
        """The site itself, if the model has it.

        Raises:
            SiteError: the model lacks it; the message says what it has.
        """
        shape, kind = Shape.of(model_or_shape), KINDS[self.kind]
        missing = shape.lacks(kind)
        if missing:
            raise SiteError(f"Site {str(self)!r}: this model has no {kind.name}, because {missing}.")
        if self.layer is not None and not 0 <= self.layer < shape.n_layers:
            raise SiteError(f"Site {str(self)!r}: this model has layers 0 to {shape.n_layers - 1}.")
        if kind.unit == "neuron" and self.layer in shape.experts:
            raise SiteError(
                f"Site {str(self)!r}: the MLP of this layer is a mixture of experts, which has no neurons of "
                f"its own: use mlp_out[{self.layer}]."
            )
        if self.unit is not None and not 0 <= self.unit < shape.units(kind):
            word = str(kind.unit).replace("_", " ")
            raise SiteError(
                f"Site {str(self)!r}: this model has {word}s 0 to {shape.units(kind) - 1} in a layer."
            )
        return self


@checked
@dataclass(frozen=True)
class Grid:
    """Sites on a regular grid: iterable, and aware of its axes, so that results come back with the same axes.

    `dims` and `coords` leave out `pos` when the whole sequence is edited at once. Made by `grid`.
    """

    kind: str
    layers: tuple[int, ...] | None
    units: tuple[int, ...] | None
    pos: tuple[Position, ...] | Literal["all", "each"]
    key_pos: tuple[Position, ...] | None = None

    @cached_property
    def coords(self) -> dict[str, tuple[Any, ...]]:
        """Axis word → coordinate values, in order. `pos="each"` has no values until `at_length` is called."""
        coords: dict[str, tuple[Any, ...]] = {}
        if self.layers is not None:
            coords["layer"] = self.layers
        if self.units is not None:
            coords[str(KINDS[self.kind].unit)] = self.units
        if self.pos == "each":
            raise SiteError(
                "This grid covers each position of prompts not yet known: call .at_length(n) first."
            )
        if self.pos != "all":
            coords["query_pos" if self.kind == "pattern" else "pos"] = self.pos
        if self.key_pos is not None:
            coords["key_pos"] = self.key_pos
        return coords

    @property
    def dims(self) -> tuple[str, ...]:
        """The axis words, in order."""
        return tuple(self.at_length(1).coords)

    def at_length(self, length: int) -> "Grid":
        """The same grid with `pos="each"` spelled out for prompts of up to `length` tokens."""
        if self.pos != "each":
            return self
        return Grid(self.kind, self.layers, self.units, tuple(range(length)), self.key_pos)

    def __iter__(self) -> Iterator[Site]:
        names = {"layer": "layer", "head": "head", "kv_head": "head", "neuron": "neuron"}
        names |= {"pos": "pos", "query_pos": "pos", "key_pos": "key_pos"}
        for values in product(*self.coords.values()):
            fields: dict[str, Any] = {
                names[axis]: value for axis, value in zip(self.coords, values, strict=True)
            }
            yield Site(self.kind, **fields)

    def __len__(self) -> int:
        size = 1
        for values in self.coords.values():
            size *= len(values)
        return size


@checked
def grid(
    kind: KindName | Literal["heads", "mlps", "neurons"],
    model_or_shape: Any,
    *,
    layer: int | Iterable[int] | None = None,
    head: int | Iterable[int] | None = None,
    neuron: int | Iterable[int] | None = None,
    pos: Literal["all", "each"] | Position | Sequence[Position] = "all",
    key_pos: Position | Sequence[Position] | None = None,
) -> Grid:
    """The sites of one kind: every layer, head or neuron unless some are named.

    `pos="all"` edits the whole sequence at once, `"each"` one position per site, a list those indices or
    names. For k and v of grouped-query models `head` counts kv heads; for `pattern`, `pos` is the query
    position.

    Raises:
        UnknownName: no such kind.
        SiteError: the model lacks a site that was named, or nothing is left.

    >>> shape = Shape(2, 4, 4, 32, 8, 128, 100, 64)
    >>> [str(site) for site in grid("z", shape, layer=1, head=[0, 3])]
    ['z[1.0]', 'z[1.3]']
    """
    row, shape = kind_named(kind, words=True), Shape.of(model_or_shape)
    unit = {"head": head, "kv_head": head, "neuron": neuron, None: None}[row.unit]
    # A head or neuron that the kind has no axis for would be ignored without a word.
    for word, chosen in (("head", head), ("neuron", neuron)):
        if chosen is not None and unit is not chosen:
            raise SiteError(f"grid({kind!r}): {kind} has no {word}s.")
    layers = None
    if row.per_layer:
        layers = shape.layers(row) if layer is None else _numbers(layer, shape.n_layers)
    elif layer is not None:
        raise SiteError(f"grid({kind!r}): {kind} belongs to no layer.")
    units = None if row.unit is None else _numbers(unit, shape.units(row))
    positions: Any = pos if isinstance(pos, str) and pos in ("all", "each") else _positions(pos)
    cells = Grid(row.name, layers, units, positions, None if key_pos is None else _positions(key_pos))
    sites = list(cells.at_length(1))
    if not sites:
        raise SiteError(
            f"grid({kind!r}) is empty: name at least one layer, head, neuron and position, or leave them out."
        )
    for site in sites:
        site.check(shape)
    return cells


def _numbers(numbers: int | Iterable[int] | None, count: int) -> tuple[int, ...]:
    """One or several numbers; None: all from 0 to `count` - 1."""
    if numbers is None:
        return tuple(range(count))
    return tuple(_index(number) for number in (numbers if isinstance(numbers, Iterable) else [numbers]))


def _positions(positions: Position | Iterable[Position]) -> tuple[Position, ...]:
    # A name is iterable too, and would be taken letter by letter.
    listed = [positions] if isinstance(positions, str) or not isinstance(positions, Iterable) else positions
    return tuple(pos if isinstance(pos, str) else _index(pos) for pos in listed)


def _index(number: Any) -> int:
    """A plain integer from what numpy and others hold it in."""
    if isinstance(number, bool):  # an integer of Python, and never meant as one
        raise SiteError(f"{number!r} is not a whole number.")
    try:
        return operator.index(number)
    except TypeError as error:
        raise SiteError(f"{number!r} is not a whole number.") from error
