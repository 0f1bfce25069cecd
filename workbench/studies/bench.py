"""A model, its prompts and what is measured on them."""

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
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.capture import capture_pairs
from workbench.engine.nodes import writer
from workbench.engine.run import run
from workbench.engine.values import constant, from_store, mean
from workbench.errors import CircuitError, PromptError
from workbench.evaluation.evaluate import evaluate
from workbench.interventions.effects import effects
from workbench.interventions.paths import path_effects
from workbench.lenses.direct_attribution import direct_attribution
from workbench.lenses.head_scores import attention_to, copying_scores, head_scores
from workbench.metrics.metric import metric as as_metric
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Node, Shape
from workbench.stores.store import ActivationStore
from workbench.studies.study import Number, Prediction, Study
from workbench.tasks.registry import load_task


@dataclass(frozen=True, eq=False)
class Bench:
    """A circuit on held-out prompts, with what a test of its story needs.

    Attributes:
        train, pairs: the prompts that it was found on, and the held-out ones that everything else is measured on.
        clean, corrupt: stores of the two runs of the held-out pairs.
        each: (example, writer, reader), the scores of the search.
    """

    model: Any
    study: Study
    circuit: Circuit
    train: PromptPairs
    pairs: PromptPairs
    clean: ActivationStore
    corrupt: ActivationStore
    each: xr.DataArray

    @classmethod
    def of(cls, study: Study, model: Any, *, n: int | None = None, seed: int = 0) -> "Bench":
        """Find the circuit on training prompts, and make ready what it is tested on. Raises `PromptError` for a single prompt."""
        n = study.n if n is None else n
        if n == 1:
            raise PromptError("n=1: a study needs at least two prompts, because one has no interval.")
        train, held = (
            load_task(study.task, model, n=n, seed=seed, split=split) for split in ("train", "heldout")
        )
        own: dict[str, Any] = {
            "value": from_store(capture_pairs(model, train, progress=False)[1]),
            "metric": train.metric,
        }
        each = score_edges(
            model, train, method=study.method, keep=("example",), seed=seed, progress=False, **own
        )
        scores = each.mean("example", skipna=False, keep_attrs=True)
        found = find_circuit(scores, min_faithfulness=study.share, model=model, pairs=train, **own)
        bench = cls(model, study, found, train, held, *capture_pairs(model, held, progress=False), each)
        return replace(bench, circuit=replace(found, labels=bench.roles))

    @property
    def metric(self) -> str:
        return self.pairs.metric

    @cached_property
    def heads(self) -> pd.DataFrame:
        """A row for each head and MLP of the circuit, of means over prompts.

        Columns: `swapped` (the metric's change when its output is the corrupt run's), `direct` (what it adds to right minus
        wrong logits, norm frozen); for heads attention from END to each named position, `copying`, `previous`, `induction`.
        """
        columns = {name: values.mean("example") for name, values in self.measured.items()}
        return pd.DataFrame({name: found.to_series() for name, found in columns.items()}).reindex(self.parts)

    @property
    def parts(self) -> list[str]:
        """The heads and MLPs of the circuit."""
        return [name for name in self.circuit.nodes if name not in ("input", "logits")]

    @cached_property
    def measured(self) -> dict[str, xr.DataArray]:
        """The columns of `heads` before averaging, (example, component)."""
        sites = [writer(name, Shape.of(self.model)).site for name in self.parts]
        swapped = effects(
            self.model,
            self.pairs,
            sites=sites,
            value=from_store(self.corrupt),
            metric=self.metric,
            progress=False,
        )
        found = {"swapped": swapped.rename(site="component").assign_coords(component=self.parts)}
        if self.pairs.answers.shape[2] == self.pairs.wrong.shape[2] == 1:
            found["direct"] = direct_attribution(
                self.clean, self.model, targets=self.pairs.answers, minus=self.pairs.wrong
            )
        others = {str(name): table for name, table in self._attended().items()}
        return found | {name: self.by_head(table) for name, table in others.items()}

    def _attended(self) -> dict[Any, xr.DataArray]:
        names = [name for name in self.pairs.clean.positions if name != "END"]
        places = attention_to(self.clean, names)
        kinds = head_scores(self.clean, scores=("previous", "induction"))
        return (
            {name: places.sel(key_pos=name) for name in names}
            | {"copying": copying_scores(self.clean, self.model)}
            | {name: kinds.sel(score=name) for name in ("previous", "induction")}
        )

    @staticmethod
    def by_head(table: xr.DataArray) -> xr.DataArray:
        """(example, layer, head) as (example, component)."""
        flat = table.stack(component=("layer", "head")).transpose("example", "component")
        names = [f"a{layer}.{head}" for layer, head in flat["component"].values]
        return xr.DataArray(flat.values, dims=("example", "component"), coords={"component": names})

    @cached_property
    def roles(self) -> dict[str, str]:
        """The role of each head that has one."""
        only = self.heads[[Node.parse(name).is_head for name in self.heads.index]]
        fitting = {
            str(name): next((r.name for r in self.study.roles if r.fits(row)), "")
            for name, row in only.iterrows()
        }
        return {name: role for name, role in fitting.items() if role}

    def of_role(self, role: str) -> list[str]:
        """The heads of that role, as `a3.7`. Raises `CircuitError` when there are none, so that nothing is tested."""
        found = [name for name, given in self.roles.items() if given == role]
        if not found:
            raise CircuitError(f"no head of this circuit is a {role} by its rule")
        return found

    # ---- edits

    def change(
        self, edits: Mapping[Any, Any], *, read: Callable[[Tensor], Tensor] | None = None
    ) -> np.ndarray:
        """[example]: m(edited) - m(clean), or what `read` makes of the edited logits at END, [example, vocab]."""
        measure = as_metric(self.metric)
        if measure.reads_answer_tokens:
            raise CircuitError("the answers are several tokens in this vocabulary, and the tests read one")
        with torch.no_grad():
            logits = measure.read(
                run(self.model, self.pairs.clean, edits=edits, other=self.pairs.corrupt).logits,
                self.pairs.clean,
            )
        after = measure(logits, self.pairs) - self.base if read is None else read(logits)
        return after.double().cpu().numpy()

    @cached_property
    def base(self) -> Tensor:
        """[example]: the metric of the clean run."""
        measure = as_metric(self.metric)
        with torch.no_grad():
            return measure(
                measure.read(run(self.model, self.pairs.clean).logits, self.pairs.clean), self.pairs
            )

    def on(self, prompts: Prompts) -> np.ndarray:
        """[example]: m(these prompts) - m(clean), with the clean prompts' answers."""
        measure = as_metric(self.metric)
        with torch.no_grad():
            after = measure(measure.read(run(self.model, prompts).logits, prompts), self.pairs)
        return (after - self.base).double().cpu().numpy()

    def attending(self, heads: Sequence[str], to: str | int, instead_of: str | int) -> dict[Any, Any]:
        """Edits: at END, each head's attention to two positions changes places."""
        edits, prompts = {}, self.pairs.clean
        end, a, b = (prompts.at(where) for where in ("END", to, instead_of))
        rows = torch.arange(len(prompts))
        for layer, head in map(_numbers, heads):
            pattern = self.clean["pattern", layer].padded()[rows, head, end].clone()
            pattern[rows, a], pattern[rows, b] = pattern[rows, b], pattern[rows, a].clone()
            edits[f"pattern[{layer}.{head}]@END"] = constant(pattern)
        return edits

    def exchanged(self, kind: str, heads: Sequence[str], a: str | int, b: str | int) -> dict[Any, Any]:
        """Edits: at two positions, what each head has there (`k`, `v`, `z`) changes places; a shared key or value once."""
        group, edits = Shape.of(self.model).group if kind in "kv" else 1, {}
        for layer, head in map(_numbers, heads):
            rows = {where: self.clean[kind, layer].at(where)[:, head // group] for where in (a, b)}
            edits |= {
                f"{kind}[{layer}.{head // group}]@{here}": constant(rows[there])
                for here, there in ((a, b), (b, a))
            }
        return edits

    def passed_on(
        self, kind: str, heads: Sequence[str], edits: Mapping[Any, Any], places: Sequence[str | int]
    ) -> dict[Any, Any]:
        """Edits: what heads have at these places (`k`, `v`) is what it would be under other edits, which reach nothing else."""
        group = Shape.of(self.model).group if kind in "kv" else 1
        wanted = [f"{kind}[{layer}]" for layer in sorted(set(map(layer_of, heads)))]
        with torch.no_grad():
            recorded = run(
                self.model, self.pairs.clean, edits=edits, other=self.pairs.corrupt, record=wanted
            ).recorded
        rows, made = torch.arange(len(self.pairs)), {}
        for layer, head in map(_numbers, heads):
            for place in places:
                there = recorded[kind, layer][rows, self.pairs.clean.at(place), head // group]  # pyright: ignore[reportArgumentType]
                made[f"{kind}[{layer}.{head // group}]@{place}"] = constant(there)
        return made

    def swapped(self, sites: Sequence[str], *, pairs: PromptPairs | None = None) -> np.ndarray:
        """[example]: the metric's change when all of these sites have the corrupt run's values, of other pairs if given."""
        corrupt = self.corrupt if pairs is None else capture_pairs(self.model, pairs, progress=False)[1]
        how: dict[str, Any] = {"value": from_store(corrupt), "metric": self.metric, "progress": False}
        return effects(self.model, pairs or self.pairs, sites=[tuple(sites)], **how).values[:, 0]

    def only_values(
        self, heads: Sequence[str], place: str, claim: str, *, who: str = "", pairs: PromptPairs | None = None
    ) -> Prediction:
        """That swapping the heads' values at a place does what swapping their outputs does: they differ by what they read."""
        return Prediction(
            f"{who}only the values at {place}",
            claim,
            predicted=float(self.swapped(outputs(heads), pairs=pairs).mean()),
            edit=lambda: self.swapped([f"v[{head[1:]}]@{place}" for head in heads], pairs=pairs),
        )

    def senders(self, heads: Sequence[str], port: str, top: int = 3) -> list[Number]:
        """What matters most on direct paths into these heads' queries or keys, its mean over tokens in its place."""
        into = [tuple(dict.fromkeys(self._reader(head, port) for head in heads))]
        how: dict[str, Any] = {
            "value": mean(self.clean),
            "metric": self.metric,
            "mlps": "frozen",
            "progress": False,
        }
        found = path_effects(self.model, self.pairs, receivers=into, **how).isel(reader=0)
        largest = np.argsort(-np.abs(np.nan_to_num(found.mean("example").values)), kind="stable")[:top]
        return [Number.of(f"{found['writer'].values[i]} -> {port}", found.values[:, i]) for i in largest]

    def _reader(self, head: str, port: str) -> str:
        layer, number = _numbers(head)
        return f"a{layer}.{number // (1 if port == 'q' else Shape.of(self.model).group)}<{port}>"

    def kept(self, pairs: PromptPairs) -> xr.Dataset:
        """What the circuit keeps on other pairs, with their corrupt values: `evaluate` without checks."""
        other = from_store(capture_pairs(self.model, pairs, progress=False)[1])
        how: dict[str, Any] = {"value": other, "metric": pairs.metric, "checks": (), "progress": False}
        return evaluate(self.circuit, self.model, pairs, **how).isel(circuit=0)


def outputs(heads: Sequence[str]) -> list[str]:
    """The sites of what heads write: `a3.7` → `z[3.7]`."""
    return [f"z[{node.layer}.{node.head}]" for node in map(Node.parse, heads)]


def layer_of(head: str) -> int:
    """The layer of `a3.7`."""
    return _numbers(head)[0]


def _numbers(head: str) -> tuple[int, int]:
    """(layer, head) of `a3.7`."""
    return Node.parse(head).layer_and_head
