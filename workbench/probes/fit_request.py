"""What a call of `fit_probes` asks for, checked against the store: sites, k, selectors and baselines.

Read `request_of`. Nothing is fitted here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import ProbeError, StoreError, UnknownName
from workbench.probes.baselines import BASELINES
from workbench.probes.labels import Labels
from workbench.probes.selected import fixed_selector
from workbench.probes.selectors import SELECTORS, Selector
from workbench.sites import KINDS, Key, kind_named


@dataclass(frozen=True)
class FitRequest:
    """What is asked for, checked."""

    keys: list[tuple[str, int]]
    ks: list[int]
    selectors: list[str]
    baselines: list[str]
    given: Mapping[Key, Sequence[int]]

    def selector(self, name: str, key: tuple[str, int]) -> Selector:
        """The selector of a name at a site."""
        if name == "given":
            return fixed_selector(self.given[key])
        return SELECTORS[name]


def request_of(
    store: Any,
    labels: Labels,
    sites: Sequence[str] | None,
    layers: Sequence[int] | None,
    k: Sequence[int],
    selectors: Sequence[str],
    baselines: Sequence[str],
    given: Mapping[Key, Sequence[int]] | None,
) -> FitRequest:
    """The request, if the store can answer it."""
    if labels.prompts is not store.prompts and labels.prompts.fingerprint != store.prompts.fingerprint:
        raise ProbeError("The labels are of other prompts than the store's: make them with this store.")
    keys = _keys(store, sites, layers)
    ks = [int(n) for n in k]  # numpy's as Python's
    if not ks or ks[0] < 1 or sorted(set(ks)) != ks:
        raise ProbeError(f"k={k!r}: give increasing numbers of features from 1 up, as in [1, 2, 4, 8].")
    known_selectors = list(SELECTORS)
    if given is not None:
        known_selectors.append("given")
    for name in selectors:
        if name not in known_selectors:
            raise UnknownName("selectors", name, known_selectors)
    for name in baselines:
        if name not in BASELINES:
            raise UnknownName("baselines", name, BASELINES)
    given = given or {}
    if "given" in selectors:
        for kind, layer in keys:
            n_given = len(set(given.get((kind, layer), ())))
            if n_given < max(ks):
                raise ProbeError(
                    f"given has {n_given} features for {kind}[{layer}]; k={max(ks)} needs as many."
                )
    return FitRequest(keys, ks, list(selectors), list(baselines), given)


def _keys(store: Any, sites: Sequence[str] | None, layers: Sequence[int] | None) -> list[tuple[str, int]]:
    """The (kind, layer) sites to probe."""
    kinds = [kind for kind in ("resid_post", "mlp_post") if kind in store.kinds]
    if sites is not None:
        kinds = list(sites)
    if not kinds:
        raise StoreError(
            f"The store holds neither resid_post nor mlp_post but {', '.join(store.kinds)}: name the sites= "
            "to probe."
        )
    keys: list[tuple[str, int]] = []
    for kind in kinds:
        if not kind_named(kind).per_layer or kind == "pattern":
            choices = ", ".join(name for name, row in KINDS.items() if row.per_layer and name != "pattern")
            raise ProbeError(f"{kind} has no layer and token rows to probe: choose among {choices}.")
        if not store.layers(kind):
            store[kind, 0]  # called for its error, which says what the store holds
        kept_layers = layers
        if kept_layers is None:
            kept_layers = store.layers(kind)
        keys += [(kind, layer) for layer in kept_layers]
    return keys
