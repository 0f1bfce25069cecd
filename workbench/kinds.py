"""The kinds of activations: `KINDS`, a row for each, and what components are called (`WORDS`).

A row replaces every per-kind setter: the TransformerLens hook that a kind is read from and written to, the words of
its axes, and its role in the graph. Where in a model a kind occurs is the matter of `sites`.
"""

from dataclasses import dataclass
from typing import Literal

from workbench.errors import UnknownName


@dataclass(frozen=True)
class Kind:
    """A kind of activation.

    Attributes:
        hook: TransformerLens' name of the hook point, with `{layer}`.
        axes: the words of its dimensions.
        role: its part in the graph.
    """

    name: str
    hook: str
    axes: tuple[str, ...]
    role: Literal["writer", "reader", "stream", "inside", "output"]

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.hook

    @property
    def unit(self) -> str | None:
        """The axis that a site may pick one of: `head`, `kv_head`, `neuron` or none."""
        return next((axis for axis in self.axes if axis in ("head", "kv_head", "neuron")), None)


class Kinds(dict[str, Kind]):
    """The kinds of activations by name: which sites there are, and how they are shaped.

    A kind is the first word of a site: `z[9.6]` is head 6 of layer 9, `resid_pre[4]@END` a stream at the last token,
    `mlp_post[2:113]` a neuron, `pattern[5.2]@7<-3` one entry of an attention pattern. A kind by itself is all of its
    sites: `effects(..., sites="z")`, `capture(..., sites=["z", "mlp_out"])`; "heads" is `z`, "mlps" `mlp_out`,
    "neurons" `mlp_post`.

    * Streams, [example, pos, d_model]: `resid_pre` (before a block), `resid_mid` (between attention and MLP),
      `resid_post` (after it). An edit of a stream changes everything that reads it later.
    * What is added to the stream: `embed`, `pos_embed`, `attn_out` (all heads of a layer), `mlp_out`,
      [example, pos, d_model]; and `z`, what a head reads out of the values, before its output weights,
      [example, pos, head, d_head]. A head writes z . W_O.
    * What reads the stream: `q`, `k`, `v`, [example, pos, head or kv_head, d_head].
    * Inside: `pattern`, the attention of a head after the softmax, [example, head, query_pos, key_pos]; `mlp_pre` and
      `mlp_post`, neurons before and after the activation function, [example, pos, neuron].
    * `logits`, [example, pos, vocab].

    Not every model has all of them: rotary models have no `pos_embed`, blocks whose attention and MLP run side by side
    no `resid_mid`, attention-only ones no kinds of MLPs.

    It misleads to compare effects of kinds that overlap: `attn_out` is the sum of all heads of a layer, and
    `resid_post` of everything before it.

    >>> import workbench as wb
    >>> wb.KINDS["z"].axes
    ('example', 'pos', 'head', 'd_head')
    """

    def __repr__(self) -> str:
        """A table: the name, the role, the axes and the hook of each."""
        rows = [f"{kind.name:<11}{kind.role:<8}[{', '.join(kind.axes)}]" for kind in self.values()]
        width = max(map(len, rows)) + 2
        return "\n".join(f"{row:<{width}}{kind.hook}" for row, kind in zip(rows, self.values(), strict=True))


# Axis words are the same in sites, grids, stores and results.
_STREAM, _HEAD, _KV = ("example", "pos", "d_model"), ("example", "pos", "head", "d_head"), "kv_head"
_PATTERN = ("example", "head", "query_pos", "key_pos")
KINDS = Kinds(
    (kind.name, kind)
    for kind in (
        Kind("embed", "hook_embed", _STREAM, "writer"),
        Kind("pos_embed", "hook_pos_embed", _STREAM, "writer"),
        Kind("resid_pre", "blocks.{layer}.hook_resid_pre", _STREAM, "stream"),
        # TransformerLens' own resid_mid is the MLP's branch only: ours is resid_pre + attn_out, edited
        # through attn_out.
        Kind("resid_mid", "blocks.{layer}.hook_attn_out", _STREAM, "stream"),
        Kind("resid_post", "blocks.{layer}.hook_resid_post", _STREAM, "stream"),
        Kind("attn_out", "blocks.{layer}.hook_attn_out", _STREAM, "writer"),
        Kind("mlp_out", "blocks.{layer}.hook_mlp_out", _STREAM, "writer"),
        Kind("q", "blocks.{layer}.attn.hook_q", _HEAD, "reader"),
        Kind("k", "blocks.{layer}.attn.hook_k", ("example", "pos", _KV, "d_head"), "reader"),
        Kind("v", "blocks.{layer}.attn.hook_v", ("example", "pos", _KV, "d_head"), "reader"),
        Kind("z", "blocks.{layer}.attn.hook_z", _HEAD, "writer"),
        Kind("pattern", "blocks.{layer}.attn.hook_pattern", _PATTERN, "inside"),
        Kind("mlp_pre", "blocks.{layer}.mlp.hook_pre", ("example", "pos", "neuron"), "inside"),
        Kind("mlp_post", "blocks.{layer}.mlp.hook_post", ("example", "pos", "neuron"), "inside"),
        Kind("logits", "unembed.hook_out", ("example", "pos", "vocab"), "output"),
    )
)
"""The kinds by name; `Kinds` says what each is."""

WORDS = {"heads": "z", "mlps": "mlp_out", "neurons": "mlp_post"}
"""What components are called → the kind that holds what they write."""


def kind_named(name: str, *, words: bool = False) -> Kind:
    """The row of `KINDS`, or an error with near matches; with `words` also that of one of `WORDS`."""
    known = [*KINDS, *WORDS] if words else list(KINDS)
    if not isinstance(name, str) or name not in known:
        raise UnknownName("kind", name, known)
    return KINDS[WORDS.get(name, name)]
