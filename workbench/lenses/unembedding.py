"""From the residual stream to logits: the model's own final norm and unembedding (`ReadOut`).

Below it are the checks and readers of stores that all lenses share. Nothing here knows what is measured of
the logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.engine.bridge import Norm, final_norm
from workbench.engine.hooked.forward import forward
from workbench.engine.memory import memory_budget
from workbench.errors import ModelError, PromptError, StoreError
from workbench.models.fingerprint import model_fingerprint
from workbench.models.load import model_device, model_name
from workbench.models.model import Model
from workbench.sites import Shape
from workbench.stores.store import ActivationStore, SiteView

# Rows that are read out at a time at most.
CHUNK = 2**14
# How far the read-out may be from the logits, as a share of the largest: a logit scale or cap is far above
# it.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class ReadOut:
    """The logits that a model gives vectors of its residual stream. Make it by `of`, which checks it.

    Attributes:
        tokens: [token] those of the vocabulary that are read, or None for all.
    """

    model: Model
    tokens: Int[Tensor, "token"] | None = None

    @classmethod
    def of(cls, model: Model, tokens: Sequence[int] | Tensor | None = None) -> "ReadOut":
        """The read-out of a model, for all tokens or some.

        Raises:
            ModelError: norm and unembedding of the last stream are not the model's logits, tried on four
                tokens.
            PromptError: token ids that the vocabulary does not have, or one twice.
        """
        read_out = cls(model, None if tokens is None else cls._checked(model, tokens))
        shape = Shape.of(model)
        last = ("resid_post", shape.n_layers - 1)
        result = forward(model, torch.arange(4)[None, : shape.n_ctx] % shape.d_vocab, record=[last])
        # [pos, vocab] and [pos, d_model] of the one prompt
        logits, stream = result.logits[0], result.recorded[last][0]
        chosen = logits if read_out.tokens is None else logits[:, read_out.tokens]
        # The whole vocabulary too: some tokens alone may agree by chance.
        for read, wanted in ((cls(model), logits), (read_out, chosen)):
            worst = float((read(stream).detach() - wanted).abs().max())
            if worst > TOLERANCE * float(logits.abs().max()):
                raise ModelError(
                    "The logits of this model are not its final norm and unembedding (difference "
                    f"{worst:.2g}): it scales them afterwards, so the logit lens would not end in its own "
                    "output."
                )
        return read_out

    @staticmethod
    def _checked(model: Model, tokens: Sequence[int] | Tensor) -> Tensor:
        chosen, size = torch.as_tensor(tokens).to(model_device(model)), Shape.of(model).d_vocab
        if chosen.ndim != 1 or not len(chosen) or chosen.is_floating_point():
            raise PromptError(f"A vocabulary is a list of at least one token id, not {str(tokens)[:60]}.")
        if int(chosen.min()) < 0 or int(chosen.max()) >= size or len(chosen.unique()) < len(chosen):
            raise PromptError(
                f"A vocabulary names token ids from 0 to {size - 1}, each once; not {str(tokens)[:60]}."
            )
        return chosen

    @property
    def n_tokens(self) -> int:
        """Tokens that are read."""
        return Shape.of(self.model).d_vocab if self.tokens is None else len(self.tokens)

    @cached_property
    def norm(self) -> Norm:
        """The norm before the unembedding."""
        return final_norm(self.model)

    @cached_property
    def bias(self) -> Float[Tensor, "vocab"]:
        """What the unembedding gives for zero."""
        weight = unembedding_weight(self.model)
        return self._unembed(weight.new_zeros(1, 1, len(weight)))[0, 0].detach()

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor]:
        return unembedding_weight(self.model)[:, self.tokens], self.bias[self.tokens]

    @cached_property
    def _unembed(self) -> nn.Module:
        return dict(self.model.named_children())["unembed"]

    def __call__(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row token"]:
        """Logits of residual vectors. Gradients flow to the vectors where they ask for them."""
        # A store may hold another precision than the model's. [1, row, d_model], as the model's modules
        # expect.
        rows = stream.to(unembedding_weight(self.model))[None]
        if self.tokens is None:
            # The bridge's own module, not `norm`: at the last layer the logits are then exactly the model's.
            ln_final = dict(self.model.named_children()).get("ln_final")
            if ln_final is not None:
                rows = ln_final(rows)
            logits = self._unembed(rows)[0]
        else:
            weight, bias = self._columns
            logits = (self.norm(rows)[0] @ weight) + bias
        # TransformerLens (4.3) caps logits in `forward`, behind `unembed`; -1 stands for no cap.
        cap = getattr(self.model.cfg, "output_logits_soft_cap", None) or -1.0
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def rows_at_once(self, budget: int | None, *, copies: int = 4) -> int:
        """How many residual vectors fit a memory budget, keeping `copies` numbers for each logit."""
        width = self.n_tokens
        budget = memory_budget(model_device(self.model), budget)
        size = 4 * (copies * width + 4 * Shape.of(self.model).d_model)
        return max(1, min(CHUNK, int(budget // size)))

    def index(self, table: Int[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
        """The indices of tokens among those that are read; -1 stays.

        Raises:
            PromptError: a token is not among them.
        """
        if self.tokens is None:
            return table
        table = table.cpu()
        index_of = torch.full((Shape.of(self.model).d_vocab,), -1)
        index_of[self.tokens.cpu()] = torch.arange(len(self.tokens))
        indices = index_of[table.clamp(min=0)].where(table >= 0, -1)
        missing = table[(indices < 0) & (table >= 0)]
        if len(missing):
            raise PromptError(
                f"Target token {int(missing[0])} is not in vocabulary=, which has {len(self.tokens)} tokens."
            )
        return indices


def unembedding_weight(model: Any) -> Float[Tensor, "d_model vocab"]:
    """W_U, which every bridge has, without its gradient."""
    return model.W_U.detach()


def check_store(store: ActivationStore, model: Model, caller: str) -> None:
    """Raise `StoreError` when a store is of another model; `caller` names the function in the message."""
    if store.model != model_fingerprint(model):
        raise StoreError(
            f"{caller}: the store is of the model {store.model_name} ({store.model[:8]}), not of "
            f"{model_name(model)}."
        )


def needed(
    store: ActivationStore, kind: str, caller: str, *, layers: Sequence[int] | None = None
) -> list[int]:
    """The layers of a kind in a store, or those asked for.

    Raises:
        StoreError: there are none, or one is missing; `caller` says in the message who needs it.
    """
    stored = store.layers(kind)
    if not stored:
        raise StoreError(
            f"{caller} needs {kind}; the store holds {', '.join(store.kinds)}. Capture it with sites=[..., "
            f"{kind!r}]."
        )
    missing = [layer for layer in layers or () if layer not in stored]
    if missing:
        raise StoreError(f"{caller} needs {kind}[{missing[0]}]; the store holds layers {stored} of it.")
    return stored if layers is None else list(layers)


def last_stream(store: ActivationStore, last: int, caller: str) -> SiteView:
    """The last layer's `resid_post`, from which logits come. Raises `StoreError` where the store lacks it."""
    return store["resid_post", needed(store, "resid_post", caller, layers=[last])[0]]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """[row]: the prompt and the position of every row of a site."""

    prompts: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]

    @property
    def n_positions(self) -> int:
        """Positions of the longest prompt that has rows."""
        return int(self.positions.max()) + 1


def token_rows(view: SiteView) -> TokenRows:
    """Which token every row of a site is of.

    Raises:
        StoreError: the rows are means over prompts, which lie at no position.
    """
    if bool((view.row_positions < 0).any()):
        raise StoreError(
            f"{view!r} holds means over prompts, which are no token's: capture with keep='all', or positions."
        )
    return TokenRows(view.row_prompts, view.row_positions)


def pieces(view: SiteView, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive rows of a site, up to `size` at a time, and which they are."""
    for start in range(0, len(view), size):
        rows = slice(start, min(start + size, len(view)))
        yield rows, view.data.part(rows.start, rows.stop)


def one_token(targets: Tensor, store: ActivationStore, model: Model, name: str) -> Tensor:
    """[example, alternative, 1] tokens, -1 where there is no alternative; `name` is for error messages."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        raise PromptError(f"{name} is a tensor of token ids, not {type(targets).__name__}.")
    size = Shape.of(model).d_vocab
    if bool((targets >= size).any()):
        raise PromptError(f"{name} has token {int(targets.max())}; the model's vocabulary has {size}.")
    table = targets[:, None, None] if targets.ndim == 1 else targets
    if table.ndim != 3 or len(table) != len(store.prompts):
        raise PromptError(
            f"{name} has shape {tuple(targets.shape)}; it needs [example] or [example, alternative, token] "
            f"for {len(store.prompts)} prompts."
        )
    if bool(((table >= 0).sum(-1) > 1).any()):
        raise PromptError(f"{name} has continuations of several tokens; it reads one token.")
    without = ((table >= 0).flatten(1).sum(1) == 0).nonzero()
    if len(without):
        raise PromptError(f"{name} has no token for example {int(without[0])}.")
    return table[:, :, :1]
