"""Path patching on the reference path: the textbook's runs with hooks, one receiver of one path at a time.

(2) the base run with the senders at their other value, every other head at its base value and MLPs frozen or not, shows
what a receiver computes; (3) the base run with only that set is an edited run like any other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.engine.bound import Bound, SitePositions, apply_edit
from workbench.engine.fast.cohorts import Element
from workbench.engine.fast.paths import Route
from workbench.engine.hooked.forward import Write, forward
from workbench.engine.nodes import Reader, Writer
from workbench.engine.precomputed import Precomputed
from workbench.engine.run import Edit
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape, Site

Values = Mapping[Site, Tensor]


class HookedPaths:
    """Patched paths of one batch, as edited runs."""

    def __init__(self, model: Any, bound: Bound, *, recompute: bool) -> None:
        self.model, self.bound, self.recompute = model, bound, recompute
        self.shape, self.prompts = Shape.of(model), bound.prompts
        kinds = ["z", *([] if self.shape.attn_only else ["mlp_out", "mlp_post"])]
        keys: list[Key] = [
            ("resid_pre", 0),
            *((kind, layer) for kind in kinds for layer in range(self.shape.n_layers)),
        ]
        self.base = forward(model, self.prompts.tokens, record=keys).recorded

    def element(self, route: Route) -> Element:
        """The edited run of a path."""
        values: Values = {each.site: self._other(each.site) for each in route.senders}
        for read, written in route.middles:
            values = self._through(values, read, written)
        return self._set(values, route.receivers)

    def _other(self, site: Site) -> Tensor:
        return _part(apply_edit(site, self.bound, self.base[site.key].clone()), site, self.prompts)

    def _set(self, values: Values, receivers: Sequence[Reader]) -> Element:
        """An edit of what each receiver computes from its changed input."""
        given = {reader.site: self._computed(values, reader) for reader in receivers}
        edit = Precomputed(
            self.prompts, given, start=0, first=torch.zeros(len(self.prompts), dtype=torch.long)
        )
        return Element(tuple((site, edit) for site in given))

    def _computed(self, values: Values, reader: Reader) -> Tensor:
        """[example, pos, ...]: what a reader computes when these writers write other values."""
        site = reader.whole.site
        spare = reader.layer if reader.is_mlp else None
        sent = {
            at: value
            for at, value in values.items()
            if at.kind not in ("mlp_out", "mlp_post") or at.layer != spare
        }
        writes = self._frozen(sent, spare=spare)
        return _part(
            forward(self.model, self.prompts.tokens, writes=writes, record=[site.key]).recorded[site.key],
            site,
            self.prompts,
        )

    def _through(self, values: Values, read: Sequence[Reader], written: Sequence[Writer]) -> Values:
        """What the writers of a node write when its readers read the change."""
        element, key = self._set(values, read), written[0].site.key
        writes = [Edit(site, bound).write() for site, bound in element.edits]
        recorded = forward(self.model, self.prompts.tokens, writes=writes, record=[key]).recorded[key]
        return {each.site: _part(recorded, each.site, self.prompts) for each in written}

    def _frozen(self, values: Values, *, spare: int | None) -> list[Write]:
        """Every head at its base value, and MLPs too unless they answer or are the one to be looked at."""
        writes = []
        for kind, layer in self.base:
            mine = {site: value for site, value in values.items() if site.key == (kind, layer)}
            neurons = any(site.key == ("mlp_post", layer) for site in values)
            free = self.recompute or layer == spare
            still = (
                kind == "z"
                or (kind == "mlp_out" and not free and not neurons)
                or (kind == "mlp_post" and neurons and not free)
            )
            if still or mine:
                writes.append(Write(kind, layer, self._writer((kind, layer), mine, still=still)))
        return writes

    def _writer(self, key: Key, values: Values, *, still: bool) -> Any:
        def change(current: Tensor) -> Tensor:
            new = self.base[key].clone() if still else current
            for site, value in values.items():
                new[SitePositions.of(site, self.prompts).indices(new)] = value
            return new

        return change


def _part(activation: Tensor, site: Site, prompts: Prompts) -> Tensor:
    return activation[SitePositions.of(site, prompts).indices(activation)]
