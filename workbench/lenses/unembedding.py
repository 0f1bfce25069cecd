"""From the residual stream to logits: the model's own final norm and unembedding (`ReadOut`).

Nothing here knows what is measured of the logits, or of stores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.engine.bridge import Norm, final_norm, output_projection, output_vocabulary
from workbench.engine.hooked.forward import forward
from workbench.engine.memory import memory_budget
from workbench.errors import ModelError, PromptError
from workbench.models.load import model_device
from workbench.models.locks import alone
from workbench.models.model import Model
from workbench.sites import Shape

# At most this many rows are read out at a time.
CHUNK = 2**14
"""Rows that are read out at a time at most."""
# How far the read-out may be from the logits, as a share of the largest: far less than a logit scale or cap.
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
        logits, stream = result.logits[0], result.recorded[last][0]
        chosen = logits if read_out.tokens is None else logits[:, read_out.tokens]
        # The whole vocabulary too: some tokens alone may agree by chance.
        for read, wanted in ((cls(model), logits), (read_out, chosen)):
            worst = float((read(stream).detach() - wanted).abs().max())
            if worst > TOLERANCE * float(logits.abs().max()):
                raise ModelError(
                    "The logits of this model are not its final norm and unembedding (difference "
                    f"{worst:.2g}): it scales them afterwards, or does something before them that is not "
                    "known here, so the logit lens would not end in its own output."
                )
        return read_out

    @staticmethod
    def _checked(model: Model, tokens: Sequence[int] | Tensor) -> Tensor:
        chosen, size = torch.as_tensor(tokens).to(model_device(model)), output_vocabulary(model)
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
        return output_vocabulary(self.model) if self.tokens is None else len(self.tokens)

    @cached_property
    def norm(self) -> Norm:
        """The norm before the unembedding."""
        return final_norm(self.model)

    @cached_property
    def bias(self) -> Float[Tensor, "vocab"]:
        """What the unembedding gives for zero."""
        weight = _own_weight(self.model)
        return self._unembed(weight.new_zeros(1, 1, len(weight)))[0, 0].detach()

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor]:
        return unembedding_weight(self.model)[:, self.tokens], self.bias[self.tokens]

    @cached_property
    def _unembed(self) -> nn.Module:
        return dict(self.model.named_children())["unembed"]

    def __call__(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row token"]:
        """Logits of residual vectors. Gradients flow to the vectors where they ask for them."""
        # A store may hold another precision than the model's. [1, row, d_model], as the modules expect it.
        rows = stream.to(_own_weight(self.model))[None]
        if self.tokens is None:
            # The bridge's own modules, not `norm`: at the last layer the logits are then exactly the model's.
            # They have hooks, which other threads may be using.
            with alone(self.model):
                ln_final = dict(self.model.named_children()).get("ln_final")
                if ln_final is not None:
                    rows = ln_final(rows)
                projection = output_projection(self.model)
                if projection is not None:
                    rows = nn.functional.linear(rows, projection.T)
                logits = self._unembed(rows)[0]
        else:
            weight, bias = self._columns
            logits = (self.norm(rows)[0] @ weight) + bias
        # TransformerLens (4.3) caps logits in `forward`, after `unembed`; -1 stands for no cap.
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
        index_of = torch.full((output_vocabulary(self.model),), -1)
        index_of[self.tokens.cpu()] = torch.arange(len(self.tokens))
        indices = index_of[table.clamp(min=0)].where(table >= 0, -1)
        missing = table[(indices < 0) & (table >= 0)]
        if len(missing):
            raise PromptError(
                f"Target token {int(missing[0])} is not in vocabulary=, which has {len(self.tokens)} tokens."
            )
        return indices


def unembedding_weight(model: Any) -> Float[Tensor, "d_model vocab"]:
    """W_U without its gradient; where the normed stream is projected to the width of W_U first (OPT-350m),
    both maps in one.
    """
    weight, projection = _own_weight(model), output_projection(model)
    return weight if projection is None else projection @ weight


def _own_weight(model: Any) -> Float[Tensor, "d_embed vocab"]:
    """W_U, which every bridge has."""
    return model.W_U.detach()
