"""Values of several counterfactuals: what each corruption of the same prompts writes.

    value = counterfactual_values(model, pairs)        # {"swap": from_store(...), "abc": from_store(...)}
    evaluate(circuit, model, pairs, value=value)       # side by side, on an axis `ablation`

Read `counterfactual_values`. A circuit that was found against one counterfactual is the circuit of that
difference; whether it does what the model does shows only against others.
"""

from collections.abc import Sequence

from workbench.arguments import checked
from workbench.engine.capture import capture
from workbench.engine.values import Value, from_store
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.sites import KINDS, Shape, Site

KINDS_READ = ("embed", "resid_pre[0]", "z", "mlp_out")
"""What circuits and scores of edges read of a counterfactual, in graphs without neurons."""


@checked
@model_call()
def counterfactual_values(
    model: Model, pairs: PromptPairs, *, sites: Sequence[str | Site] = KINDS_READ, budget: int | None = None
) -> dict[str, Value]:
    """The value of each corruption that the pairs have, by its name; their own `corrupt` first.

    Args:
        sites: what is captured, of what the model has; graphs with neurons read `mlp_post` too.
        budget: bytes of working memory.

    Raises:
        PromptError: prompts that the model cannot run.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> list(counterfactual_values(model, wb.load_task("ioi", model, n=4)))
    ['swap', 'abc']
    """
    read = those_of(model, sites)
    values: dict[str, Value] = {}
    for name, some in pairs.counterfactuals.items():
        store = capture(model, some.corrupt, sites=read, budget=budget, progress=False)
        values[name] = from_store(store)
    return values


def those_of(model: Model, sites: Sequence[str | Site]) -> list[str | Site]:
    """Those sites that a model has: an attention-only one lacks those of the MLPs.

    Names of no site are left in: whoever captures refuses them.
    """
    shape = Shape.of(model)
    kinds = [KINDS.get(str(site).partition("[")[0]) for site in sites]
    return [site for site, kind in zip(sites, kinds, strict=True) if kind is None or not shape.lacks(kind)]


def pairs_for(pairs: PromptPairs, name: str) -> PromptPairs:
    """The pairs with the corruption of that name; as they are, where the name is not of a corruption."""
    if name in pairs.counterfactuals:
        return pairs.against(name)
    return pairs
