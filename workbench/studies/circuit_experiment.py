"""`CircuitExperiment`: a circuit found on training pairs, with the measurements and edits that test an
account of it.

Everything is measured on the held-out pairs. `heads` says what each component does; `of_role` names the heads
that a test is about; `attending`, `exchanged` and `passed_on` make edits; `change` and `swapped` run edits
and return the change of the metric, [example]. Nothing here knows a behaviour: that is what a `Study` adds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from workbench.circuit.circuit import Circuit
from workbench.engine.capture import capture
from workbench.engine.run import run
from workbench.engine.values import Value, constant, mean
from workbench.errors import CircuitError
from workbench.evaluation.evaluate import evaluate
from workbench.experiment import Experiment, PairsInModel
from workbench.interventions.effects import effects
from workbench.interventions.paths import path_effects
from workbench.lenses.direct_attribution import direct_attribution
from workbench.lenses.head_scores import attention_to, copying_scores, head_scores
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Position, Shape
from workbench.stores.store import ActivationStore
from workbench.studies.by_rule import estimated_swaps
from workbench.studies.prediction import Estimate, Prediction, Role

Edits = dict[Any, Value]
"""Site → the value that is written there."""
SMALL = 5000
"""The most edges of a graph in which completeness and minimality are measured too: they run the model for
every component.
"""
FEW = 16
"""Pairs for what takes long in larger graphs, where criteria chose the circuit."""
STRONGEST = 20
"""Heads of a circuit of thousands of edges that a study looks at."""


@dataclass(frozen=True, eq=False)
class CircuitExperiment(Experiment):
    """An experiment with the circuit that was found on its training pairs.

    Attributes:
        circuit: as it was found; `labelled_circuit` has the roles of its heads.
        example_scores: (example, writer, reader), the scores that it was cut from.
        rules: the roles that heads can have; the first rule that fits counts.
        columns: further columns of `heads` from the runs of some pairs, (example, component).
        passes: whether the circuit kept criteria against every counterfactual on the prompts that chose it;
            None where it was chosen by the share that it keeps against one.
    """

    circuit: Circuit
    example_scores: xr.DataArray
    rules: tuple[Role, ...] = ()
    columns: Callable[[PairsInModel], Mapping[str, xr.DataArray]] = lambda _: {}
    passes: bool | None = None

    @property
    def by_rule(self) -> bool:
        """Whether criteria chose the circuit, against every counterfactual."""
        return self.passes is not None

    @cached_property
    def training(self) -> "CircuitExperiment":
        """The same circuit, measured on the training pairs: what predictions are made from before anything is
        measured on held-out ones.
        """
        if self.heldout is self.train:
            return self
        return replace(self, heldout=self.train)

    @cached_property
    def few(self) -> "CircuitExperiment":
        """The same circuit on the first `FEW` held-out pairs, for what takes long where criteria chose a
        circuit of thousands of edges; else on all of them.
        """
        is_small = self.circuit.graph.n_edges <= SMALL
        if not self.by_rule or is_small or len(self.heldout) <= FEW:
            return self
        return replace(self, heldout=self.heldout.select(slice(FEW)))

    @property
    def pairs(self) -> PromptPairs:
        """The held-out pairs, on which everything is measured."""
        return self.heldout.pairs

    @property
    def clean(self) -> ActivationStore:
        """The activations of the clean run of the held-out pairs."""
        return self.heldout.clean

    @property
    def corrupt(self) -> ActivationStore:
        """The activations of the corrupt run of the held-out pairs."""
        return self.heldout.corrupt

    @property
    def components(self) -> list[str]:
        """The heads and MLPs of the circuit, as `a3.7` and `m3`.

        Of a circuit that criteria chose the `STRONGEST` heads: those that `estimated_swaps` puts first, from
        the scores of training prompts. Rules of roles are about attention, which MLPs have none of.
        """
        names = [name for name in self.circuit.nodes if name not in ("input", "logits")]
        if not self.by_rule:
            return names
        estimated, heads = estimated_swaps(self.example_scores), filter(_is_head, names)
        strongest = sorted(heads, key=lambda name: estimated[name], reverse=True)[:STRONGEST]
        return [name for name in names if name in strongest]

    @cached_property
    def heads(self) -> pd.DataFrame:
        """A row for each component of the circuit, of means over prompts.

        Columns: `swapped` (the metric's change when the component's output is the corrupt run's; also
        `swapped abc` for a further counterfactual `abc`, where criteria chose the circuit), `direct`
        (its direct contribution to right minus wrong logits, norm frozen); for heads, attention from END to
        each named position, and the scores `copying`, `previous` and `induction`.
        """
        means = {name: values.mean("example").to_series() for name, values in self.measured.items()}
        return pd.DataFrame(means).reindex(self.components)

    @cached_property
    def measured(self) -> dict[str, xr.DataArray]:
        """The columns of `heads` before averaging, each (example, component)."""
        columns = {"swapped": self._swapped_alone(self.pairs)}
        if self.by_rule:
            for name in list(self.pairs.counterfactuals)[1:]:
                columns[f"swapped {name}"] = self._swapped_alone(self.pairs.against(name))
        # Direct attribution reads one logit for each answer, so it needs answers of one token.
        if self.pairs.answers.shape[2] == self.pairs.wrong.shape[2] == 1:
            columns["direct"] = direct_attribution(
                self.clean, self.model, targets=self.pairs.answers, minus=self.pairs.wrong
            )
        names = [name for name in self.pairs.clean.positions if name != "END"]
        attention = attention_to(self.clean, names)
        for name in names:
            columns[name] = self.by_head(attention.sel(key_pos=name))
        columns["copying"] = self.by_head(copying_scores(self._copied, self.model))
        scores = head_scores(self.clean, scores=("previous", "induction"))
        for name in ("previous", "induction"):
            columns[name] = self.by_head(scores.sel(score=name))
        return columns | dict(self.columns(self.heldout))

    @property
    def _copied(self) -> ActivationStore:
        """The values that copying scores are counted on."""
        few = self.few
        if few is self:
            return self.clean
        # In a large vocabulary a score takes long: it is taken of a few prompts, in the layers asked for.
        layers = sorted(set(map(layer_of, filter(_is_head, self.components))))
        return capture(self.model, few.pairs.clean, sites=[f"v[{layer}]" for layer in layers], progress=False)

    def _swapped_alone(self, pairs: PromptPairs) -> xr.DataArray:
        """(example, component): the change of the metric when a component's output alone is swapped."""
        swapped = effects(
            self.model,
            pairs,
            sites=outputs(self.components),
            value=self._with(pairs).value("corrupt"),
            metric=self.metric,
            progress=False,
        )
        return swapped.rename(site="component").assign_coords(component=self.components)

    @staticmethod
    def by_head(table: xr.DataArray) -> xr.DataArray:
        """A table (example, layer, head) as (example, component), its components named `a3.7`."""
        flat = table.stack(component=("layer", "head")).transpose("example", "component")
        names = [f"a{layer}.{head}" for layer, head in flat["component"].values]
        return xr.DataArray(flat.values, dims=("example", "component"), coords={"component": names})

    @cached_property
    def roles(self) -> dict[str, str]:
        """Head → its role, for the heads of the circuit that have one.

        Where criteria chose the circuit, training pairs decide, so that held-out ones only test.
        """
        roles, heads = {}, self.heads
        if self.by_rule:
            heads = self.training.heads
        for name, row in heads[heads.index.str.startswith("a")].iterrows():
            fitting = [role.name for role in self.rules if role.fits(row)]
            if fitting:
                roles[str(name)] = fitting[0]
        return roles

    @property
    def labelled_circuit(self) -> Circuit:
        """The circuit with the roles of its heads as labels."""
        return replace(self.circuit, labels=self.roles)

    def of_role(self, role: str) -> list[str]:
        """The heads of a role, as `a3.7`. Raises `CircuitError` when there are none to test."""
        heads = [name for name, name_of_role in self.roles.items() if name_of_role == role]
        if not heads:
            raise CircuitError(f"no head of this circuit is a {role} by its rule")
        return heads

    @cached_property
    def base(self) -> Tensor:
        """[example]: the metric of the clean run."""
        return self._metric_of(self.pairs.clean, {})

    def change(self, edits: Mapping[Any, Value]) -> np.ndarray:
        """[example]: m(edited) - m(clean).

        Raises:
            CircuitError: answers of several tokens, which these tests do not read.
        """
        self._check_single_tokens()
        return _as_numbers(self._metric_of(self.pairs.clean, edits) - self.base)

    def read(self, reader: Callable[[Tensor], Tensor], edits: Mapping[Any, Value]) -> np.ndarray:
        """[example]: what `reader` makes of the edited run's logits at END, [example, vocab].

        Raises:
            CircuitError: answers of several tokens, which these tests do not read.
        """
        self._check_single_tokens()
        return _as_numbers(reader(self._logits(self.pairs.clean, edits)))

    def on(self, prompts: Prompts) -> np.ndarray:
        """[example]: m(these prompts) - m(clean), with the answers of the clean prompts."""
        return _as_numbers(self._metric_of(prompts, {}) - self.base)

    def _metric_of(self, prompts: Prompts, edits: Mapping[Any, Value]) -> Tensor:
        return self.metric(self._logits(prompts, edits), self.pairs)

    @torch.no_grad()
    def _logits(self, prompts: Prompts, edits: Mapping[Any, Value]) -> Tensor:
        """[example, vocab]: the logits that the metric reads."""
        # Values from the corrupt store are matched to prompts by their partner in the pair.
        other = None
        if edits:
            other = self.pairs.corrupt
        logits = run(self.model, prompts, edits=dict(edits), other=other).logits
        return self.metric.read(logits, prompts)

    def _check_single_tokens(self) -> None:
        if self.metric.reads_answer_tokens:
            raise CircuitError("the answers are several tokens in this vocabulary, and the tests read one")

    def swapped(self, sites: Sequence[str], *, pairs: PromptPairs | None = None) -> np.ndarray:
        """[example]: the change of the metric when all of these sites take the corrupt run's values.

        Args:
            pairs: other pairs to take the values from; None takes the held-out pairs.
        """
        data = self._with(pairs)
        table = effects(
            self.model,
            data.pairs,
            sites=[tuple(sites)],
            value=data.value("corrupt"),
            metric=self.metric,
            progress=False,
        )
        return table.values[:, 0]

    def kept(self, pairs: PromptPairs) -> xr.Dataset:
        """`evaluate` without checks on other pairs, with their own metric and corrupt values."""
        data = PairsInModel.of(self.model, pairs)
        result = evaluate(
            self.circuit,
            self.model,
            pairs,
            value=data.value("corrupt"),
            metric=data.metric,
            checks=(),
            progress=False,
        )
        return result.isel(circuit=0)

    def _with(self, pairs: PromptPairs | None) -> PairsInModel:
        # The held-out pairs themselves have their runs already.
        if pairs is None or pairs is self.pairs:
            return self.heldout
        return PairsInModel.of(self.model, pairs, metric=self.metric)

    def attention(self, heads: Sequence[str], to: Position, edits: Mapping[Any, Value]) -> np.ndarray:
        """[example]: the attention from END to a position in the edited run, the mean of these heads."""
        sites = [f"pattern[{layer}]" for layer in sorted(set(map(layer_of, heads)))]
        recorded = self._recorded(edits, sites)
        rows, end, key = torch.arange(len(self.pairs)), *map(self.pairs.clean.at, ("END", to))
        weights = [recorded["pattern", head.layer][rows, head.index, end, key] for head in map(parsed, heads)]
        return _as_numbers(torch.stack(weights).mean(0))

    @torch.no_grad()
    def _recorded(self, edits: Mapping[Any, Value], sites: Sequence[str]) -> Mapping[Any, Tensor]:
        """What an edited run has at some sites, by (kind, layer)."""
        other = self.pairs.corrupt if edits else None
        return run(self.model, self.pairs.clean, edits=dict(edits), other=other, record=sites).recorded

    def attending(self, heads: Sequence[str], to: Position, instead_of: Position) -> Edits:
        """Edits that exchange, at END, each head's attention to two positions."""
        edits: Edits = {}
        prompts, rows = self.pairs.clean, torch.arange(len(self.pairs))
        end, new, old = map(prompts.at, ("END", to, instead_of))
        for head in map(parsed, heads):
            patterns = self.clean["pattern", head.layer].padded()
            pattern = patterns[rows, head.index, end].clone()
            # Two columns change places, so that the row still sums to 1.
            pattern[rows, new], pattern[rows, old] = pattern[rows, old], pattern[rows, new].clone()
            edits[f"pattern[{head.layer}.{head.index}]@END"] = constant(pattern)
        return edits

    def exchanged(self, kind: str, heads: Sequence[str], a: Position, b: Position) -> Edits:
        """Edits that exchange what each head has (`k`, `v` or `z`) at two positions."""
        edits: Edits = {}
        for head in map(parsed, heads):
            # Heads that share a key or value have one site between them, so it is exchanged once.
            unit = head.index // self._group(kind)
            activation = self.clean[kind, head.layer]
            edits[f"{kind}[{head.layer}.{unit}]@{a}"] = constant(activation.at(b)[:, unit])
            edits[f"{kind}[{head.layer}.{unit}]@{b}"] = constant(activation.at(a)[:, unit])
        return edits

    def passed_on(
        self, kind: str, heads: Sequence[str], edits: Mapping[Any, Value], positions: Sequence[Position]
    ) -> Edits:
        """Edits that give heads, at these positions, the `k` or `v` that other edits would give them, and
        change nothing else.
        """
        sites = [f"{kind}[{layer}]" for layer in sorted(set(map(layer_of, heads)))]
        recorded = self._recorded(edits, sites)
        rows = torch.arange(len(self.pairs))
        new_edits: Edits = {}
        for head in map(parsed, heads):
            unit = head.index // self._group(kind)
            activation = recorded[kind, head.layer]
            for position in positions:
                content = activation[rows, self.pairs.clean.at(position), unit]
                new_edits[f"{kind}[{head.layer}.{unit}]@{position}"] = constant(content)
        return new_edits

    def _group(self, kind: str) -> int:
        """How many heads share one `k` or `v`; 1 for kinds that every head has for itself."""
        if kind in ("k", "v"):
            return Shape.of(self.model).group
        return 1

    def only_values(
        self,
        heads: Sequence[str],
        position: str,
        claim: str,
        *,
        subject: str = "",
        pairs: PromptPairs | None = None,
    ) -> Prediction:
        """The prediction that swapping the heads' values at a position does what swapping their outputs does.

        Where it holds, the two runs differ in what these heads read there, not in where they attend.
        """
        return Prediction(
            f"{subject}only the values at {position}",
            claim,
            predicted=float(self.swapped(outputs(heads), pairs=pairs).mean()),
            edit=lambda: self.swapped(self.values_at(heads, position), pairs=pairs),
        )

    def values_at(self, heads: Sequence[str], position: str) -> list[str]:
        """The sites of the values that heads read at a position; heads of a group have one between them."""
        units = [(head.layer, head.index // self._group("v")) for head in map(parsed, heads)]
        return [f"v[{layer}.{unit}]@{position}" for layer, unit in dict.fromkeys(units)]

    def corrupted(self, components: Sequence[str]) -> Edits:
        """Edits that give components the outputs that they have in the corrupt run."""
        return {site: self.heldout.value("corrupt") for site in outputs(components)}

    def senders(self, heads: Sequence[str], port: str, top: int = 3) -> list[Estimate]:
        """The writers whose direct paths into these heads' `port` (q or k) matter most, set to their mean.

        Of a circuit of thousands of edges on `FEW` pairs, because every writer is a run.
        """
        few = self.few
        readers = [tuple(dict.fromkeys(self._reader(head, port) for head in heads))]
        # MLPs are frozen, so that only direct edges count and not what they do on the way.
        table = path_effects(
            self.model,
            few.pairs,
            receivers=readers,
            value=mean(self.clean),
            metric=self.metric,
            mlps="frozen",
            progress=False,
        ).isel(reader=0)
        # NaN marks writers that do not come before these readers.
        size = np.abs(np.nan_to_num(table.mean("example").values))
        names = table["writer"].values
        largest = np.argsort(-size, kind="stable")[:top]
        return [Estimate.of(f"{names[i]} -> {port}", table.values[:, i]) for i in largest]

    def _reader(self, head: str, port: str) -> str:
        name = parsed(head)
        return f"a{name.layer}.{name.index // self._group(port)}<{port}>"


@dataclass(frozen=True)
class _Head:
    layer: int
    index: int


def parsed(head: str) -> _Head:
    """The layer and index of a head's name such as `a3.7`."""
    layer, index = head[1:].split(".")
    return _Head(int(layer), int(index))


def layer_of(head: str) -> int:
    """The layer of a head's name such as `a3.7`."""
    return parsed(head).layer


def _is_head(component: str) -> bool:
    return component.startswith("a")


def outputs(components: Sequence[str]) -> list[str]:
    """The sites of what heads and MLPs write: `a3.7` → `z[3.7]`, `m3` → `mlp_out[3]`."""
    sites = []
    for name in components:
        kind = "z" if _is_head(name) else "mlp_out"
        sites.append(f"{kind}[{name[1:]}]")
    return sites


def _as_numbers(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
