"""Path patching as it is written down, one sender set and one receiver set at a time: the slow reference.

1. The base run, everything seen.  2. The base run with the senders' outputs set, every other head's output set to its base
value, MLPs likewise or left free: what each reader reads is seen on the way.  3. The base run with what the receivers read set
to that, the rest free. Models compute their own q, k, v, MLP inputs and norms; nothing is rebuilt here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.engine.values import Value
from workbench.metrics.metric import metric as as_metric
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Shape, Site

NODE = re.compile(
    r"input|logits|a(?P<layer>\d+)\.(?P<head>\d+)(<(?P<port>[qkv])>)?|m(?P<mlp>\d+)(:(?P<neuron>\d+))?"
)
Names = str | tuple[str, ...]

SENDERS = ["input", "a0.1", "a1.2", ("a0.0", "a0.3"), ("input", "a1.0")]
MLP_SENDERS = ["m0", "m1", "m0:7", "m1:3", ("m0", "a1.3"), ("a0.2", "m0:3", "m1:11")]
RECEIVERS = [
    "logits",
    "a0.1<v>",
    "a1.1<q>",
    "a1.0<k>",
    "a1.1<v>",
    "a1.3",
    "a1.2<q>@END",
    "a1.1<k>@3",
    "logits@END",
]
RECEIVERS += [("a1.0<q>", "a1.1<k>", "logits"), ("a1.0@2", "a0.1<q>@END"), ("a0.3", "a1.0<v>@3")]
MLP_RECEIVERS = ["m0", "m1", "m1:5", "m1@END", "m0:4@2", ("m0:2", "m1:3@3", "a1.0<q>")]
PATHS = [
    "a0.2->a1.1<q>@END->logits",
    "input->a0.1<k>->a1.0<v>->logits",
    "input->a0.0<v>->a1.1<k>->logits@END",
    "a1.2->logits",
]
PATHS += ["input->a0.0<k>@2->a1.1", "a0.1->a1.0<k>@3", "input->logits", "input->a0.0<v>@2->a1.1<v>@3->logits"]
PATHS += [
    "input->a0.2->a1.3->logits",
    "input->a0.3->a1.1<v>",
]  # a grouped head reads its group's k and v, and sends on alone
MLP_PATHS = [
    "input->m0->a1.0<q>->logits",
    "m0:3->a1.1<v>->logits",
    "input->m0:7@2->m1",
    "input->m0:7->m1:5->logits",
]
SEQUENTIAL_PATHS = ["a0.1->m0->logits", "input->a1.2<q>->m1", "input->a0.2->m0:3->a1.1<v>->m1@END->logits"]


class Reading(NamedTuple):
    """Where a reader reads: a hook, the head or neuron of it (None: all), the position (None: all)."""

    hook: str
    unit: int | None
    where: str | int | None


def names_of(element: Names) -> tuple[str, ...]:
    return (element,) if isinstance(element, str) else element


class ThreeRuns:
    """The reference for one model, one set of pairs, one value and one setting of the MLPs."""

    def __init__(
        self,
        model: Any,
        pairs: PromptPairs,
        *,
        value: Value,
        mlps: str,
        metric: str | Callable[..., Tensor] = "logit_diff",
        base: str = "clean",
    ) -> None:
        assert mlps in ("frozen", "recomputed")
        self.model, self.pairs, self.mlps, self.metric, self.shape = (
            model,
            pairs,
            mlps,
            as_metric(metric),
            Shape.of(model),
        )
        self.prompts, other = (
            (pairs.clean, pairs.corrupt) if base == "clean" else (pairs.corrupt, pairs.clean)
        )
        self.bound = value.bind(model, self.prompts, other)
        self.seen: dict[tuple[str, ...], dict[str, Tensor]] = {}
        self.hooks = ["blocks.0.hook_resid_pre", "unembed.hook_in"]
        for layer in range(self.shape.n_layers):
            self.hooks += [f"blocks.{layer}.attn.hook_{port}" for port in "qkvz"]
            if not self.shape.attn_only:
                self.hooks += [
                    f"blocks.{layer}.{name}" for name in ("mlp.hook_in", "mlp.hook_post", "hook_mlp_out")
                ]
        self.base_logits, self.base, _ = self.run({})
        with torch.no_grad():
            self.reference = self.metric.read(model(pairs.clean.tokens), pairs.clean)
        self.measured = self.measure(self.base_logits)

    def run(
        self, changes: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The base run with these hooks changed: its logits, what arrived at every hook, and what left it."""
        arrived: dict[str, Tensor] = {}
        left: dict[str, Tensor] = {}

        def act(value: Tensor, hook: Any, name: str) -> Tensor:
            arrived[name] = value.clone()
            left[name] = changes[name](value.clone()) if name in changes else arrived[name]
            return left[name]

        hooks = [(name, partial(act, name=name)) for name in self.hooks]
        with torch.no_grad():
            logits = self.model.run_with_hooks(self.prompts.tokens, fwd_hooks=hooks, return_type="logits")
        assert set(arrived) == set(self.hooks), "a hook did not fire"
        return logits, arrived, left

    def measure(self, logits: Tensor) -> Tensor:
        return self.metric(self.metric.read(logits, self.prompts), self.pairs, self.reference)

    def other_output(self, writer: str) -> Tensor:
        """What the value puts in place of a writer's output."""
        node = NODE.fullmatch(writer)
        if writer == "input":
            site, current = Site("resid_pre", 0), self.base["blocks.0.hook_resid_pre"]
        elif node["layer"]:
            layer, head = int(node["layer"]), int(node["head"])
            site, current = Site("z", layer, head), self.base[f"blocks.{layer}.attn.hook_z"][:, :, head]
        elif node["neuron"]:
            layer, neuron = int(node["mlp"]), int(node["neuron"])
            site = Site("mlp_post", layer, neuron=neuron)
            current = self.base[f"blocks.{layer}.mlp.hook_post"][:, :, neuron]
        else:
            layer = int(node["mlp"])
            site, current = Site("mlp_out", layer), self.base[f"blocks.{layer}.hook_mlp_out"]
        return self.bound.edited(site, current)

    def run_sending(self, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What every reader reads in the base run with these writers' outputs set and the rest frozen (step 2)."""
        changes: dict[str, Callable[[Tensor], Tensor]] = {}
        if "input" in sent:
            changes["blocks.0.hook_resid_pre"] = lambda _: sent["input"]
        for layer in range(self.shape.n_layers):
            z = self.base[f"blocks.{layer}.attn.hook_z"].clone()
            for head in range(self.shape.n_heads):
                if f"a{layer}.{head}" in sent:
                    z[:, :, head] = sent[f"a{layer}.{head}"]
            changes[f"blocks.{layer}.attn.hook_z"] = lambda _, z=z: z
            if self.shape.attn_only:
                continue
            post, out = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_mlp_out"
            neurons = {int(name.split(":")[1]): sent[name] for name in sent if name.startswith(f"m{layer}:")}
            if f"m{layer}" in sent:
                changes[out] = lambda _, layer=layer: sent[f"m{layer}"]
            elif self.mlps == "frozen":
                frozen = self.base[out]
                if neurons:  # what the MLP writes in the base run when only these neurons are changed
                    frozen = self.run({post: lambda value, neurons=neurons: _with(value, neurons)})[1][out]
                changes[out] = lambda _, frozen=frozen: frozen
            elif neurons:
                changes[post] = lambda value, neurons=neurons: _with(value, neurons)
        return self.run(changes)[1]

    def readings(self, reader: str) -> list[Reading]:
        """Where a reader reads; a bare head's three."""
        name, _, at = reader.partition("@")
        node = NODE.fullmatch(name)
        where = None if not at else int(at) if at.isdigit() else at
        if name == "logits":
            return [Reading("unembed.hook_in", None, where)]
        if node["mlp"] and node["neuron"]:
            return [Reading(f"blocks.{node['mlp']}.mlp.hook_post", int(node["neuron"]), where)]
        if node["mlp"]:
            return [Reading(f"blocks.{node['mlp']}.mlp.hook_in", None, where)]
        found = []
        for port in node["port"] or "qkv":
            head = int(node["head"])
            if port != "q" and not node["port"]:  # a head's keys and values are its group's
                head = head // (self.shape.n_heads // self.shape.n_kv_heads)
            found.append(Reading(f"blocks.{node['layer']}.attn.hook_{port}", head, where))
        return found

    def run_receiving(
        self, readings: Sequence[Reading], seen: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The base run in which these readers read what was seen, the rest free (step 3): its logits, and what left each hook."""
        changes = {}
        for hook in {reading.hook for reading in readings}:

            def change(value: Tensor, hook: str = hook) -> Tensor:
                for reading in readings:
                    if reading.hook != hook:
                        continue
                    for i, places in enumerate(self.places(reading.where)):
                        for place in places:
                            at = (i, place) if reading.unit is None else (i, place, reading.unit)
                            value[at] = seen[hook][at]
                return value

            changes[hook] = change
        logits, _, left = self.run(changes)
        return logits, left

    def places(self, where: str | int | None) -> list[list[int | slice]]:
        """The positions meant in each example; none where an example lacks it."""
        lengths = self.prompts.lengths.tolist()
        if where is None:
            return [[slice(None)]] * len(lengths)
        at = self.prompts.positions[where].tolist() if isinstance(where, str) else [where] * len(lengths)
        return [[place] if 0 <= place < length else [] for place, length in zip(at, lengths, strict=True)]

    def reaches(self, writer: str, reader: str) -> bool:
        """Whether the writer has been added to the stream that the reader reads."""
        return self._time(writer, writes=True) < self._time(reader.partition("@")[0], writes=False)

    def _time(self, name: str, *, writes: bool) -> float:
        """In a layer: attention reads at 0 and writes at 1, the MLP reads at 2 (at 0 if parallel) and writes at 3."""
        if name in ("input", "logits"):
            return -1 if name == "input" else float("inf")
        node = NODE.fullmatch(name)
        if node["layer"]:
            return 4 * int(node["layer"]) + (1 if writes else 0)
        return 4 * int(node["mlp"]) + (3 if writes else 0 if self.shape.parallel else 2)

    def effect(self, senders: Names, receivers: Names) -> Tensor:
        """[example]: m(patched) - m(base)."""
        senders, receivers = names_of(senders), names_of(receivers)
        nothing = torch.full_like(self.measured, float("nan"))
        if not any(self.reaches(writer, reader) for writer in senders for reader in receivers):
            return nothing
        if senders not in self.seen:
            self.seen[senders] = self.run_sending({writer: self.other_output(writer) for writer in senders})
        readings = [reading for reader in receivers for reading in self.readings(reader)]
        return self._outcome(readings, self.seen[senders])

    def table(self, senders: Sequence[Names], receivers: Sequence[Names]) -> Tensor:
        """[example, writer, reader]."""
        return torch.stack(
            [torch.stack([self.effect(one, into) for into in receivers], -1) for one in senders], -2
        )

    def path(self, text: str) -> Tensor:
        """[example]: the effect along a path `writer->reader->...->reader`."""
        first, *rest = text.split("->")
        sent = {first: self.other_output(first)}
        absent = torch.zeros(len(self.prompts), dtype=torch.bool)
        for step in rest[:-1]:
            readings, seen = self.readings(step), self.run_sending(sent)
            absent |= self._absent(readings)
            then = self.run_receiving(readings, seen)[1]
            sent = self.sent_by(step.partition("@")[0], then)
        outcome = self._outcome(self.readings(rest[-1]), self.run_sending(sent))
        return outcome.masked_fill(absent, float("nan"))

    def sent_by(self, node: str, then: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs that a node in the middle of a path sends on, as they were in a run."""
        parts = NODE.fullmatch(node)
        if parts["neuron"]:
            return {node: then[f"blocks.{parts['mlp']}.mlp.hook_post"][:, :, int(parts["neuron"])]}
        if parts["mlp"]:
            return {node: then[f"blocks.{parts['mlp']}.hook_mlp_out"]}
        layer, head, group = parts["layer"], int(parts["head"]), self.shape.n_heads // self.shape.n_kv_heads
        heads = range(head * group, (head + 1) * group) if parts["port"] in ("k", "v") else [head]
        return {f"a{layer}.{one}": then[f"blocks.{layer}.attn.hook_z"][:, :, one] for one in heads}

    def _outcome(self, readings: Sequence[Reading], seen: Mapping[str, Tensor]) -> Tensor:
        change = self.measure(self.run_receiving(readings, seen)[0]) - self.measured
        return change.masked_fill(self._absent(readings), float("nan"))

    def _absent(self, readings: Sequence[Reading]) -> Tensor:
        """[example]: whether it lacks a position of one of them."""
        return torch.tensor(
            [any(not self.places(reading.where)[i] for reading in readings) for i in range(len(self.prompts))]
        )


def asked(model: Any) -> tuple[list[Names], list[Names], list[str]]:
    """Senders, receivers and paths of every sort, for a model of two layers of four heads."""
    shape = Shape.of(model)
    if shape.attn_only:
        return SENDERS, RECEIVERS, PATHS
    return (
        SENDERS + MLP_SENDERS,
        RECEIVERS + MLP_RECEIVERS,
        PATHS + MLP_PATHS + ([] if shape.parallel else SEQUENTIAL_PATHS),
    )


def _with(value: Tensor, neurons: Mapping[int, Tensor]) -> Tensor:
    for neuron, content in neurons.items():
        value[:, :, neuron] = content
    return value
