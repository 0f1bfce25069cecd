"""`given_value`: what a caller passes as `value=` (a `Value`, a name, or nothing) as a `Value`.

    patched = given_value(value, model, pairs, sites=writer_sites(graph))
    attrs |= {"value": patched.describe(), **name_attrs(value)}

A name that is read from activations ("mean", "resample", the other side) has them captured here, of the pairs
of the call and of the sites that are read alone. `named_values` is the table of names; it runs no model.
"""

from collections.abc import Callable, Iterable

from workbench.circuit.graph import Graph
from workbench.engine.capture import capture
from workbench.engine.named_values import canonical_name, make_value
from workbench.engine.nodes import writer
from workbench.engine.values import Value
from workbench.models.model import Model
from workbench.names import SIDES, ValueName, other_side
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Site
from workbench.stores.store import ActivationStore

GivenValue = Value | ValueName
"""What `value=` takes: a value such as `wb.mean(store)`, or the name of one."""


def given_value(
    value: GivenValue | None,
    model: Model,
    pairs: PromptPairs,
    *,
    sites: Iterable[Site],
    base: str = "clean",
    budget: int | None = None,
    optimal: Callable[[], Value] | None = None,
) -> Value:
    """The value that a caller means; a `Value` is returned as it is.

    Args:
        value: None is the run that is not edited.
        sites: whose activations the value is read from; only these are captured.
        base: the run that is edited: "mean" and "resample" are over its own prompts.
        budget: bytes of working memory of the capture.
        optimal: returns the fitted value, where the caller can fit one.

    Raises:
        UnknownName: no such name.
        EditError: the name of the run that is edited, a number that is not finite, or "optimal" without a fit.
    """
    if isinstance(value, Value):
        return value

    def store_of(side: str) -> ActivationStore:
        """The activations of one run at those sites."""
        keys = dict.fromkeys(site.key for site in sites)
        read = [Site(*key) for key in keys]
        return capture(model, pairs.side(side), sites=read, budget=budget, progress=False)

    return make_value(value, base=base, store_of=store_of, optimal=optimal)


def name_attrs(value: GivenValue | None, *, base: str = "clean") -> dict[str, str]:
    """For the attrs of a result: the name of a value that was given by name, and whose activations it is of.

    Empty for a `Value`, which describes itself.

    >>> name_attrs("mean")
    {'value_name': 'mean', 'value_from': 'the clean prompts of these pairs'}
    >>> name_attrs("zero")
    {'value_name': 'zero'}
    """
    if isinstance(value, Value):
        return {}
    name = canonical_name(value, base=base)
    sources = {"mean": base, "resample": base} | dict.fromkeys(SIDES, other_side(base))
    if name not in sources:
        return {"value_name": name}
    return {"value_name": name, "value_from": f"the {sources[name]} prompts of these pairs"}


def writer_sites(graph: Graph) -> list[Site]:
    """The activations that hold what the writers of a graph write: all that a circuit's value is read from.

    >>> import workbench as wb
    >>> sites = writer_sites(wb.Graph.of(wb.load_model("tiny")))
    >>> [str(site) for site in sites[:3]]
    ['resid_pre[0]', 'z[0]', 'mlp_out[0]']
    """
    keys = dict.fromkeys(writer(name, graph.shape).site.key for name in graph.writers)
    return [Site(*key) for key in keys]


def scored_sites(graph: Graph) -> list[Site]:
    """What scores of edges read of a value: `writer_sites`, and the embeddings that a path of inputs leads along."""
    return [Site("embed"), *writer_sites(graph)]
