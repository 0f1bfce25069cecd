"""A decoder as plain arithmetic on tokens, without hooks: what the fast engine computes.

Read `Decoder` first, then `Layer`. A `Decoder` holds views of the model's own weights (never copies), so it
costs nothing to make and sees every later change of them. Linear maps and norms take tokens packed in any
shape; only `attend` knows that tokens belong to prompts. Nothing here knows about sites, edits or metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from workbench.engine.bridge import Norm
from workbench.sites import Shape

EditPattern = Callable[[Tensor], Tensor]
"""Attention patterns [run, example, head, query, key] → what they are after an edit."""


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias, with weight [in, out]."""

    weight: Float[Tensor, "into out"]
    bias: Float[Tensor, "out"] | None

    def __call__(self, x: Tensor) -> Tensor:
        # All leading axes become one, so that any packing of tokens is a single product of matrices.
        flat = x.reshape(-1, x.shape[-1])
        if self.bias is None:
            return (flat @ self.weight).view(*x.shape[:-1], -1)
        return torch.addmm(self.bias, flat, self.weight).view(*x.shape[:-1], -1)

    def columns(self, index: slice | Tensor) -> "Linear":
        """The map to some of its outputs, a view where `index` is a slice."""
        return Linear(self.weight[:, index], None if self.bias is None else self.bias[index])

    def to(self, dtype: torch.dtype) -> "Linear":
        """The map in another precision."""
        return Linear(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


@dataclass(frozen=True)
class Rotary:
    """Rotation of queries and keys by position, of the first `cos.shape[-1]` dimensions of a head.

    Attributes:
        cos, sin: [pos, rotated].
        adjacent: whether neighbouring dimensions rotate together (TransformerLens' own models) instead of the
            two halves (Hugging Face).
    """

    cos: Float[Tensor, "pos rotated"]
    sin: Float[Tensor, "pos rotated"]
    adjacent: bool = False

    def __call__(self, x: Tensor, pos: Int[Tensor, "... pos"]) -> Tensor:
        """x [..., pos, head, d_head], rotated by these positions."""
        # [..., pos, 1, rotated]: all heads of a token turn by the same angles.
        cos, sin = (table[pos].unsqueeze(-2).to(x.dtype) for table in (self.cos, self.sin))
        n_rotated = self.cos.shape[-1]
        rotated, rest = x[..., :n_rotated], x[..., n_rotated:]
        if self.adjacent:
            swapped = torch.stack((-rotated[..., 1::2], rotated[..., 0::2]), -1).flatten(-2)
        else:
            first, second = rotated.chunk(2, -1)
            swapped = torch.cat((-second, first), -1)
        rotated = rotated * cos + swapped * sin
        if not rest.shape[-1]:
            return rotated
        return torch.cat((rotated, rest), -1)


@dataclass(frozen=True)
class Layer:
    """The weights of one block.

    `mlp_norm`, `mlp_in` and `mlp_out` are None without MLPs, `mlp_gate` without gating.

    Attributes:
        q_norm, k_norm: norms of single heads before rotation, where the model has them (Qwen 3).
        scale: the factor of attention scores, usually d_head ** -0.5.
    """

    attn_norm: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    scale: float
    mlp_norm: Norm | None = None
    mlp_in: Linear | None = None
    mlp_gate: Linear | None = None
    mlp_out: Linear | None = None
    act: Callable[[Tensor], Tensor] | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    def mlp_pre(self, normed: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pre-activation that the hook `mlp_pre` shows, and the linear half of a gated MLP."""
        assert self.mlp_in is not None
        if self.mlp_gate is None:
            return self.mlp_in(normed), None
        # In a gated MLP the hook `mlp_pre` shows the gate: the nonlinearity is applied to it.
        return self.mlp_gate(normed), self.mlp_in(normed)

    def mlp_post(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        """What the MLP's output map reads."""
        assert self.act is not None
        post = self.act(pre)
        if linear is not None:
            post = post * linear
        return post


@dataclass(frozen=True)
class Decoder:
    """A whole model; `families.read` makes it.

    Attributes:
        embed: [vocab, d_model].
        pos_embed: [pos, d_model], or None.
        softmax: the precision of attention's softmax, or None for the model's own.
        max_length: prompts longer than this need the reference path (a sliding window begins to matter);
            None: no bound.
    """

    family: str
    shape: Shape
    layers: tuple[Layer, ...]
    embed: Float[Tensor, "vocab d_model"]
    pos_embed: Float[Tensor, "pos d_model"] | None
    rotary: Rotary | None
    final_norm: Norm
    unembed: Linear
    softmax: torch.dtype | None = None
    max_length: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, and so of every activation."""
        return self.embed.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.device

    def heads(self, x: Tensor, layer: int, port: str, pos: Tensor) -> Tensor:
        """q or k [..., pos, head, d_head] as attention uses it: normed and rotated.

        Args:
            port: "q" or "k".
            pos: the positions, which decide the rotation.
        """
        # Normed before it is rotated, as Qwen 3 does.
        norm = {"q": self.layers[layer].q_norm, "k": self.layers[layer].k_norm}[port]
        if norm is not None:
            x = norm(x)
        if self.rotary is not None:
            x = self.rotary(x, pos)
        return x

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row example query head d_head"],
        k: Float[Tensor, "row example pos kv_head d_head"],
        v: Float[Tensor, "row example pos kv_head d_head"],
        before: tuple[Tensor, Tensor] | None,
        visible: Bool[Tensor, "example_or_one query pos"],
        edit: EditPattern | None = None,
    ) -> Float[Tensor, "row example query head d_head"]:
        """z of several rows (an edited run each) of the same examples.

        Scores and patterns are made only where they are edited or watched, or smaller than queries, keys and
        values; else torch's fused attention gives z without them.

        Args:
            q, k, v: of the positions that differ between rows; q and k rotated.
            before: keys and values [example, pos, kv_head, d_head] of the earlier positions, which all rows
                share.
            visible: which of the row's own positions a query sees; it sees all that come before.
            edit: gets and returns the pattern [row, example, head, query, key].
        """
        rows, n, n_queries, n_heads, width = q.shape
        n_before = 0 if before is None else before[0].shape[1]
        if edit is None and self.fuses(n_queries, n_before + k.shape[2]):
            return self._fused(layer, q, k, v, before, visible)
        n_kv = k.shape[3]
        group = n_heads // n_kv
        # One product per (example, kv head), in which all rows, heads of the group and queries meet the keys
        # that they share: q becomes [example, kv_head, row, head of the group, query, d_head].
        query = q.reshape(rows, n, n_queries, n_kv, group, width).permute(1, 3, 0, 4, 2, 5)
        query = query * self.layers[layer].scale
        own_scores = query.reshape(n, n_kv, rows, group * n_queries, width) @ k.permute(1, 3, 0, 4, 2)
        own_scores = own_scores.view(n, n_kv, rows, group, n_queries, -1)
        hidden = ~visible[:, None, None, None]
        # The lowest finite number and not -inf: TransformerLens and transformers mask with it, and a row of
        # -inf would become NaN in the softmax.
        own_scores = own_scores.masked_fill_(hidden, torch.finfo(own_scores.dtype).min)
        scores = own_scores
        if before is not None and n_before:
            # The base run's keys are the same for every row: rows are more queries of one product.
            flat_query = query.reshape(n, n_kv, rows * group * n_queries, width)
            shared_scores = flat_query @ before[0].permute(0, 2, 3, 1)
            scores = torch.cat(
                (shared_scores.view(n, n_kv, rows, group, n_queries, n_before), own_scores), -1
            )
        pattern = torch.softmax(scores, -1, dtype=self.softmax).to(v.dtype)
        if edit is not None:
            whole = pattern.permute(2, 0, 1, 3, 4, 5).reshape(rows, n, n_heads, n_queries, -1)
            pattern = edit(whole).view(rows, n, n_kv, group, n_queries, -1).permute(1, 2, 0, 3, 4, 5)
        own = pattern[..., n_before:].reshape(n, n_kv, rows, group * n_queries, -1)
        z = (own @ v.permute(1, 3, 0, 2, 4)).view(n, n_kv, rows, group, n_queries, width)
        if before is not None and n_before:
            shared = pattern[..., :n_before].reshape(n, n_kv, rows * group * n_queries, n_before)
            z = z + (shared @ before[1].permute(0, 2, 1, 3)).view_as(z)
        return z.permute(2, 0, 4, 1, 3, 5).reshape(rows, n, n_queries, n_heads, width)

    def fuses(self, n_queries: int, n_keys: int) -> bool:
        """Whether attention to so many keys is fused, where nobody edits or watches its pattern.

        It is where a head's scores take more memory than its queries, keys and values: short prompts gain
        nothing. In half precision it never is, since a pattern that is not written down is not rounded, nor
        where a model's softmax has another precision than its weights.
        """
        if self.dtype not in (torch.float32, torch.float64) or self.softmax not in (None, self.dtype):
            return False
        return n_queries * n_keys > self.shape.d_head * (n_queries + 2 * n_keys)

    def _fused(
        self,
        layer: int,
        q: Float[Tensor, "row example query head d_head"],
        k: Float[Tensor, "row example pos kv_head d_head"],
        v: Float[Tensor, "row example pos kv_head d_head"],
        before: tuple[Tensor, Tensor] | None,
        visible: Bool[Tensor, "example_or_one query pos"],
    ) -> Float[Tensor, "row example query head d_head"]:
        """`attend` by torch's `scaled_dot_product_attention`, which keeps no pattern."""
        rows, n, _, n_heads, _ = q.shape
        keys, values = k, v
        if before is not None and before[0].shape[1]:
            keys, values = (
                torch.cat((shared.expand(rows, *shared.shape), own), 2)
                for shared, own in zip(before, (k, v), strict=True)
            )
            visible = functional.pad(visible, (before[0].shape[1], 0), value=True)
        # [row * example, head, pos, d_head]; a kv head is laid out once for each head of its group.
        query, keys, values = (
            table.flatten(0, 1).transpose(1, 2).repeat_interleave(n_heads // table.shape[3], 1)
            for table in (q, keys, values)
        )
        # A causal mask by name is not made, and what it hides is not computed.
        is_causal = len(visible) == 1 and torch.equal(visible[0], torch.ones_like(visible[0]).tril())
        mask = None
        if not is_causal:
            mask = visible.expand(rows, n, *visible.shape[1:]).flatten(0, 1)[:, None]
        z = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=is_causal, scale=self.layers[layer].scale
        )
        return z.transpose(1, 2).unflatten(0, (rows, n))

    def written(
        self, kind: str, layer: int | None, change: Tensor, unit: int | Int[Tensor, "run"] | None = None
    ) -> Tensor:
        """What a change of a writer's activation adds to the stream, [..., d_model].

        Args:
            change: of z [..., head, d_head], mlp_post [..., neuron], or of an activation that is in the
                stream already; with `unit`, of that head [..., d_head] or neuron [...] alone.
            unit: one head or neuron, or one for each run, the first axis of `change`.
        """
        if kind not in ("z", "mlp_post"):
            return change
        assert layer is not None
        block = self.layers[layer]
        out = {"z": block.o, "mlp_post": block.mlp_out}[kind]
        assert out is not None
        # No bias: a change of what is written does not contain it.
        if unit is None:
            if kind == "z":
                change = change.flatten(-2)
            return change @ out.weight
        if kind == "mlp_post":
            weight = out.weight[unit]
            if isinstance(unit, Tensor):
                weight = weight.view(-1, *[1] * (change.ndim - 1), weight.shape[-1])
            return change.unsqueeze(-1) * weight
        weight = out.weight.view(self.shape.n_heads, self.shape.d_head, -1)[unit]
        if isinstance(unit, Tensor):
            # Flattened, so that a run's examples and positions are one product of matrices.
            return (change.flatten(1, -2) @ weight).view(*change.shape[:-1], -1)
        return change @ weight

    def token_flops(self) -> int:
        """Floating-point operations of one token in one block, without attention's scores."""
        shape = self.shape
        attn = shape.d_model * shape.d_head * (2 * shape.n_heads + 2 * shape.n_kv_heads)
        return 2 * (attn + self.mlp_products() * shape.d_model * shape.d_mlp)

    def mlp_products(self) -> int:
        """How many d_model x d_mlp products an MLP takes."""
        first = self.layers[0]
        if first.mlp_in is None:
            return 0
        return 2 if first.mlp_gate is None else 3


def are_linear(*modules: Any) -> bool:
    """Whether every module is there and is a plain linear map: `nn.Linear` or `Conv1D`."""
    # Subclasses (quantised or adapted layers) compute something else, so the exact class is asked for.
    return all(type(module).__name__ in ("Linear", "Conv1D") for module in modules)


def linear(module: Any) -> Linear:
    """The map of an `nn.Linear` or of a `Conv1D`, whose weight is [in, out] already."""
    weight = module.weight.detach()
    bias = getattr(module, "bias", None)
    if type(module).__name__ != "Conv1D":
        weight = weight.T
    return Linear(weight, None if bias is None else bias.detach())
