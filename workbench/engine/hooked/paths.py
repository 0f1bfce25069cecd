"""`HookedPaths`: path patching with hooks, as papers describe it, one receiver of one path at a time.

(1) The base run is recorded. (2) The base run with the senders at their counterfactual value, every other
head at its base value and MLPs frozen or not, shows what a receiver computes. (3) The base run with only that
set is an edited run like any other, an `Element`. Source: Wang et al. 2211.00593, appendix B.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from workbench.engine.bound import Bound, SitePositions, apply_edit
from workbench.engine.fast.cohorts import Element
from workbench.engine.fast.paths import Route
from workbench.engine.hooked.forward import Change, Write, forward
from workbench.engine.nodes import Reader, Writer
from workbench.engine.precomputed import Precomputed
from workbench.engine.run import Edit
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape, Site

Values = Mapping[Site, Tensor]


class HookedPaths:
    """Patched paths of one batch, as edited runs.

    Args:
        bound: what the senders write.
        recompute: whether MLPs on the way are recomputed from what reaches them, or frozen at the base run.
    """

    def __init__(self, model: Model, bound: Bound, *, recompute: bool) -> None:
        self.model, self.bound, self.recompute = model, bound, recompute
        self.shape, self.prompts = Shape.of(model), bound.prompts
        kinds = ["z"] if self.shape.attn_only else ["z", "mlp_out", "mlp_post"]
        keys: list[Key] = [("resid_pre", 0), *product(kinds, range(self.shape.n_layers))]
        # Recorded once: every path freezes what is not on it at these values.
        self.base = forward(model, self.prompts, record=keys).recorded

    def element(self, route: Route) -> Element:
        """The edited run of a path."""
        values: Values = {sender.site: self._patched(sender.site) for sender in route.senders}
        for read, written in route.middles:
            values = self._through(values, read, written)
        return self._set(values, route.receivers)

    def _patched(self, site: Site) -> Tensor:
        """A sender's counterfactual value."""
        return _of_site(apply_edit(site, self.bound, self.base[site.key].clone()), site, self.prompts)

    def _set(self, values: Values, receivers: Sequence[Reader]) -> Element:
        """An edit of what each receiver computes from its changed input."""
        tables = {reader.site: self._computed(values, reader) for reader in receivers}
        first = torch.zeros(len(self.prompts), dtype=torch.long)  # 0, because the tables hold all tokens
        edit = Precomputed(self.prompts, tables, start=0, first=first)
        return Element(tuple((site, edit) for site in tables))

    def _computed(self, values: Values, reader: Reader) -> Tensor:
        """[example, pos, ...]: what a reader computes when these writers write other values."""
        site = reader.whole.site
        receiving_mlp = None
        if reader.is_mlp:
            receiving_mlp = reader.layer
        sent = {}
        for sender, value in values.items():
            # An MLP does not send to itself: what it computes is what is asked for.
            if sender.kind not in ("mlp_out", "mlp_post") or sender.layer != receiving_mlp:
                sent[sender] = value
        writes = self._frozen(sent, receiving_mlp=receiving_mlp)
        recorded = forward(self.model, self.prompts, writes=writes, record=[site.key]).recorded
        return _of_site(recorded[site.key], site, self.prompts)

    def _through(self, values: Values, read: Sequence[Reader], written: Sequence[Writer]) -> Values:
        """What the writers of a node write when its readers read the change."""
        element, key = self._set(values, read), written[0].site.key  # all writers of a node are of one layer
        writes = [Edit(site, bound).write() for site, bound in element.edits]
        recorded = forward(self.model, self.prompts, writes=writes, record=[key]).recorded[key]
        return {writer.site: _of_site(recorded, writer.site, self.prompts) for writer in written}

    def _frozen(self, values: Values, *, receiving_mlp: int | None) -> list[Write]:
        """Every head at its base value, and MLPs too unless they are recomputed or are the receiver."""
        writes = []
        for kind, layer in self.base:
            # What senders write into this activation comes last, over its frozen value (see `_change`).
            of_layer = {site: values[site] for site in values if site.key == (kind, layer)}
            neurons_send = any(site.key == ("mlp_post", layer) for site in values)
            recomputed = self.recompute or layer == receiving_mlp
            # Where neurons send, their MLP is frozen at its neurons: frozen at its output, nothing of them
            # would get out.
            frozen_kind = "mlp_post" if neurons_send else "mlp_out"
            frozen = kind == "z" or (kind == frozen_kind and not recomputed)
            if frozen or of_layer:
                writes.append(Write(kind, layer, self._change((kind, layer), of_layer, frozen=frozen)))
        return writes

    def _change(self, key: Key, values: Values, *, frozen: bool) -> Change:
        """What sets an activation to its base value (if frozen) and then its senders to theirs."""

        def change(current: Tensor) -> Tensor:
            """In this order: a sender of a frozen layer writes its own value over the frozen one."""
            new = current
            if frozen:
                new = self.base[key].clone()  # cloned, because the senders are written into it
            for site, value in values.items():
                new[SitePositions.of(site, self.prompts).indices(new)] = value
            return new

        return change


def _of_site(activation: Tensor, site: Site, prompts: Prompts) -> Tensor:
    """What belongs to the site of a whole activation."""
    return activation[SitePositions.of(site, prompts).indices(activation)]
