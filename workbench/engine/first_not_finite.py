"""Where a run ceases to be finite: `located` adds it to the refusals of a metric, which sees logits alone.

Only errors pay for it: the run is repeated with its streams recorded, prompt by prompt.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workbench.engine.hooked.forward import forward
from workbench.errors import NotFinite
from workbench.finite import is_finite
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape, Site


@contextmanager
def located(model: Model, prompts: Prompts, label: Callable[[int], str] | None = None) -> Iterator[None]:
    """Around measurements: a `NotFinite` without a place gets one.

    Args:
        prompts: of the run without edits.
        label: the number of an edited run (`NotFinite.run`) → what it is called.

    Raises:
        NotFinite: with the first site of the run without edits that is not finite; where all of them are
            finite, with the edited run that is not.
    """
    try:
        yield
    except NotFinite as error:
        if error.place is not None:
            raise
        site = first_not_finite(model, prompts)
        if site is not None:
            text = f"The run without edits is not finite from {site} on: check the weights and the dtype."
            raise NotFinite(f"{error} {text}", place=site) from error
        if error.run is None or label is None:
            raise
        place = label(error.run)
        text = f"The run without edits is finite; edited at {place} it is not."
        raise NotFinite(f"{error} {text}", place=place) from error


def first_not_finite(model: Model, prompts: Prompts) -> str | None:
    """The first activation, in the order of computation, that is not finite for some prompt; None: all are.

    As in "mlp_out[3] of prompt 2".
    """
    shape = Shape.of(model)
    kinds = ["resid_pre", "z", "mlp_out", "resid_post"]
    if shape.attn_only:
        kinds.remove("mlp_out")
    keys: list[Key] = []
    for layer in range(shape.n_layers):
        keys += [(kind, layer) for kind in kinds]
    # The earliest activation over all prompts: the first prompt's may be a later one. Number len(keys) stands
    # for the logits, and the one after it for none.
    first, first_prompt = len(keys) + 1, 0
    for i in range(len(prompts)):
        run = forward(model, prompts.select([i]), record=keys)
        activations = [*(run.recorded[key] for key in keys), run.logits]
        for number, activation in enumerate(activations[:first]):
            if not is_finite(activation):
                first, first_prompt = number, i
                break
    if first > len(keys):
        return None
    name = "logits" if first == len(keys) else str(Site(*keys[first]))
    return f"{name} of prompt {first_prompt}"
