"""What lenses read of a store, checked: whose it is, which layers it has, and which token each row is of.

Each check names its caller in the message. What is computed of the rows is not known here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from workbench.engine.bridge import output_vocabulary
from workbench.errors import PromptError, StoreError
from workbench.finite import check_finite
from workbench.models.model import Model
from workbench.stores.store import ActivationStore, SiteView


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
    if layers is None:
        return stored
    return list(layers)


def last_stream(store: ActivationStore, last: int, caller: str) -> SiteView:
    """The last layer's `resid_post`, from which logits come. Raises `StoreError` where the store lacks it."""
    return store["resid_post", needed(store, "resid_post", caller, layers=[last])[0]]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The prompt and the position of every row of a site, [row] each."""

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
            f"{view!r} holds means over prompts, which lie at no position: "
            "capture with keep='all', or positions."
        )
    return TokenRows(view.row_prompts, view.row_positions)


def pieces(view: SiteView, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive rows of a site, up to `size` at a time, and which they are."""
    for start in range(0, len(view), size):
        rows = slice(start, min(start + size, len(view)))
        yield rows, finite_rows(view.data.part(rows.start, rows.stop), view)


def finite_rows(rows: Tensor, view: SiteView) -> Tensor:
    """Rows of a site. Raises `NotFinite` where they are not finite."""
    check_finite(rows, f"{view!r}", "Capture it again, in a precision that holds these activations.")
    return rows


def one_token(targets: Tensor, store: ActivationStore, model: Model, name: str) -> Tensor:
    """[example, alternative, 1] tokens, -1 where there is no alternative; `name` is for error messages."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        raise PromptError(f"{name} is a tensor of token ids, not {type(targets).__name__}.")
    size = output_vocabulary(model)  # of the logits: some models read more tokens than they can write
    if bool((targets >= size).any()):
        raise PromptError(f"{name} has token {int(targets.max())}; the model has logits of {size}.")
    table = targets
    if targets.ndim == 1:
        table = targets[:, None, None]
    if table.ndim != 3 or len(table) != len(store.prompts):
        raise PromptError(
            f"{name} has shape {tuple(targets.shape)}; it needs [example] or [example, alternative, token] "
            f"for {len(store.prompts)} prompts."
        )
    if bool(((table >= 0).sum(-1) > 1).any()):
        raise PromptError(f"{name} has answers of several tokens; only answers of one token can be read.")
    without = ((table >= 0).flatten(1).sum(1) == 0).nonzero()
    if len(without):
        raise PromptError(f"{name} has no token for example {int(without[0])}.")
    return table[:, :, :1]
