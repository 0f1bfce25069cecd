"""The judge of the workbench's numbers: a model of transformers with plain PyTorch hooks, and nothing else.

`Plain` finds the parts of any decoder by what flows through them in one run: the projection that the heads
end in, the norms in front of and behind the parts of a block, the last norm. `Plain.zeroed` and
`Plain.direct` need the heads' and the MLPs' outputs alone. `Plain.circuit` and `Plain.edge_scores` rebuild
what every reader reads; where a block is not the sum of its heads and its MLP, `Plain.unclear` says why
they cannot.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from plain_parts import (
    Layer,
    Unclear,
    applied,
    equal,
    find_parts_of,
    first_tensor,
    layer_of,
    same,
    tensors_seen,
)
from torch import Tensor, nn


class Plain:
    """A model of transformers; rows are lists of token ids, and every row runs by itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.config = model, model.config
        self.n_heads = getattr(self.config, "num_attention_heads", 0)
        n_layers = self.config.num_hidden_layers
        lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == n_layers]
        blocks = lists[0] if lists else []
        self.layers = [layer_of(block) for block in blocks]
        self.with_heads = [i for i, layer in enumerate(self.layers) if layer.heads is not None]
        self.unclear: str | None = None
        self.last: nn.Module | None = None
        self.factor = float(getattr(self.config, "residual_multiplier", 1.0) or 1.0)
        try:
            self._find_parts(list(range(3, 9)))
        except (Unclear, KeyError, AttributeError, RuntimeError) as reason:
            self.unclear = f"{reason}"[:200]

    @torch.no_grad()
    def logits(self, row: Sequence[int]) -> Tensor:
        """[pos, vocab]"""
        return self._run(row)

    def _run(self, row: Sequence[int]) -> Tensor:
        return self.model(torch.tensor([list(row)])).logits[0]

    @torch.no_grad()
    def before_cap(self, row: Sequence[int]) -> Tensor:
        """[pos, vocab]: the logits before a soft cap."""
        logits = self._run(row)
        names = ("final_logit_softcapping", "logits_soft_cap")
        cap = next((getattr(self.config, name) for name in names if getattr(self.config, name, None)), None)
        if cap is None:
            return logits
        return cap * torch.atanh(logits.double() / cap)

    # ---- heads and MLPs

    @torch.no_grad()
    def zeroed(self, row: Sequence[int], layer: int, head: int) -> Tensor:
        """[pos, vocab] of the run in which nobody reads that head."""
        with _hooks([(self.layers[layer].heads, self._without(head))], []):
            return self._run(row)

    @torch.no_grad()
    def direct(self, row: Sequence[int], layer: int, head: int) -> Tensor:
        """[pos, vocab] of the run without that head, all other heads and all MLPs held at what they wrote."""
        heads = [one.heads for one in self.layers if one.heads is not None]
        mlps = [module for one in self.layers for module in one.mlp_out]
        kept: dict[nn.Module, Any] = {}

        def keep_input(module: nn.Module, given: Tensor) -> None:
            kept[module] = given.clone()

        def keep_output(module: nn.Module, output: Any) -> None:
            kept[module] = _copied(output)

        with _hooks([(one, keep_input) for one in heads], [(one, keep_output) for one in mlps]):
            self._run(row)
        sender = self.layers[layer].heads
        held = [(one, lambda module, _: kept[module]) for one in heads if one is not sender]
        frozen = [(one, lambda module, _: _copied(kept[module])) for one in mlps]
        with _hooks([*held, (sender, self._without(head))], frozen):
            return self._run(row)

    def _without(self, head: int) -> Callable[[nn.Module, Tensor], Tensor]:
        def change(_: nn.Module, given: Tensor) -> Tensor:
            given = given.clone()
            width = given.shape[-1] // self.n_heads
            given[..., head * width : (head + 1) * width] = 0
            return given

        return change

    # ---- circuits

    def circuit(self, row: Sequence[int], graph: Any, edges: np.ndarray) -> Tensor:
        """[pos, vocab] of the run in which the edges [writer, reader] that are missing carry zero.

        A component that nothing enters counts as absent. One that nothing reads stays as it is: what it does
        inside its block (a norm over all heads) is not an edge.
        """
        cut = torch.from_numpy(graph.exists & ~_entered(graph, edges)).float()
        with torch.no_grad():
            return _CircuitRun(self, graph, cut).logits(row)

    def edge_scores(self, row: Sequence[int], graph: Any, right: int, wrong: int) -> Tensor:
        """[writer, reader]: what a writer writes times the gradient of the logit difference at the reader."""
        run = _CircuitRun(self, graph, None)
        logits = run.logits(row)[-1]
        gradients = torch.autograd.grad(logits[right] - logits[wrong], run.shifts, allow_unused=True)
        scores = torch.zeros(graph.exists.shape)
        one_writer = torch.eye(len(graph.writers))
        for first, last, change in run.changes:
            for writer in range(first, last):
                written = -change(one_writer[first:last, writer : writer + 1])[0]
                for reader, gradient in enumerate(gradients):
                    if graph.exists[writer, reader] and gradient is not None:
                        scores[writer, reader] = (written * gradient).sum()
        return scores.detach()

    def check_clear(self) -> None:
        """Raise `Unclear` where circuits cannot be worked out here."""
        if self.unclear:
            raise Unclear(self.unclear)

    def _find_parts(self, row: Sequence[int]) -> None:
        seen = tensors_seen(self.model, row)
        for layer in self.layers:
            find_parts_of(layer, seen, self.n_heads, self.config)
            enter, leave = seen[layer.block]
            heads = applied(layer.attn_post, seen[layer.heads][1])
            mlp = sum(
                applied(post, seen[out][1].view_as(enter))
                for post, out in zip(layer.mlp_post, layer.mlp_out, strict=True)
            )
            if not same(enter + self.factor * (heads + mlp), leave):
                raise Unclear("a block is not the stream plus its heads and its MLP")
            middle = seen[layer.mlp_norm or layer.mlp_in[0]][0].view_as(enter)
            if not (same(middle, enter) or same(middle, enter + self.factor * heads)):
                raise Unclear("the MLP reads something else than the stream")
        leave = seen[self.layers[-1].block][1]
        inside = {module for layer in self.layers for module in layer.block.modules()}
        for module, (given, _) in tensors_seen(self.model, row, last=True).items():
            if module not in inside and equal(given, leave) and not isinstance(module, nn.ModuleList):
                self.last = module
                break
        if self.last is None:
            raise Unclear("no module reads the last block's output")
        row_logits = self.logits(row)
        with torch.no_grad():
            if not same(_CircuitRun(self, _Graph.of(self), "none").logits(row), row_logits):
                raise Unclear("q, k and v are not made by the projections that were found")


@dataclass(frozen=True)
class _Graph:
    """Names and order of writers and readers, where no graph of the workbench is at hand."""

    writers: list[str]
    readers: list[str]
    exists: np.ndarray

    @classmethod
    def of(cls, plain: Plain) -> "_Graph":
        writers, readers = ["input"], []
        for i, layer in enumerate(plain.layers):
            writers += [f"a{i}.{head}" for head in range(plain.n_heads)] + [f"m{i}"]
            for port in "qkv":
                readers += [f"a{i}.{head}<{port}>" for head in range(len(layer.ports[port].columns))]
            readers.append(f"m{i}")
        readers.append("logits")
        return cls(writers, readers, np.zeros((len(writers), len(readers)), dtype=bool))


class _CircuitRun:
    """One run in which every reader's input is rebuilt.

    Args:
        cut: [writer, reader], 1 where an edge carries zero; None: nothing is cut, and `shifts` collect
            gradients; "none": nothing is cut.

    Attributes:
        changes: first and last writer, and what turns their cuts [writer, reader] into a change of the
            readers' inputs [reader, 1, pos, d_model].
    """

    def __init__(self, plain: Plain, graph: Any, cut: Tensor | str | None) -> None:
        self.plain, self.graph = plain, graph
        self.cut = cut if isinstance(cut, Tensor) else torch.zeros(graph.exists.shape)
        self.with_shifts, self.shifts = cut is None, []
        self.changes: list[tuple[int, int, Callable[[Tensor], Tensor]]] = []
        self.readers = {name: i for i, name in enumerate(graph.readers)}
        self.writers = {name: i for i, name in enumerate(graph.writers)}

    def logits(self, row: Sequence[int]) -> Tensor:
        """[pos, vocab]"""
        before: list[tuple[nn.Module | None, Any]] = []
        after: list[tuple[nn.Module | None, Any]] = []
        for index, layer in enumerate(self.plain.layers):
            state: dict[str, Any] = {"mlp": 0}
            before.append((layer.block, self._enter(index, state)))
            for module in {port.module for port in layer.ports.values()}:
                after.append((module, self._project(index, layer, state)))
            before.append((layer.heads, self._keep(state, "z")))
            after.append((layer.heads, self._collect_heads(index, layer, state)))
            if layer.mlp_norm is not None:
                before.append((layer.mlp_norm, self._keep(state, "middle")))
            else:
                before.append((layer.mlp_in[0], self._keep(state, "middle")))
            for module in layer.mlp_in:
                before.append((module, self._read_mlp(index, layer, state)))
            for module in layer.mlp_out:
                after.append((module, self._collect_mlp(index, layer, state)))
        before.append((self.plain.last, self._read_logits))
        if self.with_shifts:
            sizes = (1, len(row), self.plain.config.hidden_size)
            self.shifts = [torch.zeros(sizes, requires_grad=True) for _ in self.graph.readers]
        with _hooks(before, after):
            return self.plain._run(row)

    def _rebuilt(self, stream: Tensor, readers: slice) -> Tensor:
        """[reader, 1, pos, d_model]"""
        rebuilt = stream[None].expand(readers.stop - readers.start, *stream.shape)
        for first, last, change in self.changes:
            rebuilt = rebuilt + change(self.cut[first:last, readers])
        if self.shifts:
            rebuilt = rebuilt + torch.stack(self.shifts[readers])
        return rebuilt

    def _enter(self, index: int, state: dict[str, Any]) -> Callable[..., None]:
        def change(_: nn.Module, stream: Tensor) -> None:
            stream = stream.clone()  # some blocks add in place
            state["enter"] = stream
            if index == 0:
                self.changes.append((0, 1, lambda cut: -cut.T[:, :, None, None] * stream))

        return change

    def _project(self, index: int, layer: Layer, state: dict[str, Any]) -> Callable[..., Tensor]:
        def change(module: nn.Module, output: Tensor) -> Tensor:
            output = output.clone()
            for name, port in layer.ports.items():
                if port.module is not module:
                    continue
                first = self.readers[f"a{index}.0<{name}>"]
                rebuilt = self._rebuilt(state["enter"], slice(first, first + len(port.columns)))
                made = module.forward(applied(layer.attn_norm, rebuilt[:, 0]))
                for head, columns in enumerate(port.columns):
                    output[..., columns] = made[head][..., columns]
            return output

        return change

    def _keep(self, state: dict[str, Any], name: str) -> Callable[..., None]:
        def change(_: nn.Module, given: Tensor) -> None:
            state[name] = given

        return change

    def _collect_heads(self, index: int, layer: Layer, state: dict[str, Any]) -> Callable[..., None]:
        def change(module: nn.Module, output: Tensor) -> None:
            z = state["z"]
            width = z.shape[-1] // self.plain.n_heads
            empty = module.forward(torch.zeros_like(z))
            written = []
            for head in range(self.plain.n_heads):
                alone = torch.zeros_like(z)
                alone[..., head * width : (head + 1) * width] = z[..., head * width : (head + 1) * width]
                written.append(module.forward(alone) - empty)
            parts, whole = torch.stack(written), output.clone()

            def of_cut(cut: Tensor) -> Tensor:
                removed = torch.einsum("wr,wbpd->rbpd", cut, parts)
                if layer.attn_post is None:
                    return -self.plain.factor * removed
                post = layer.attn_post.forward
                return self.plain.factor * (post(whole[None] - removed) - post(whole[None]))

            first = self.writers[f"a{index}.0"]
            self.changes.append((first, first + self.plain.n_heads, of_cut))

        return change

    def _read_mlp(self, index: int, layer: Layer, state: dict[str, Any]) -> Callable[..., Tensor]:
        def change(_: nn.Module, given: Tensor) -> Tensor:
            reader = self.readers[f"m{index}"]
            stream = state["middle"].view_as(state["enter"])
            rebuilt = self._rebuilt(stream, slice(reader, reader + 1))[0]
            return applied(layer.mlp_norm, rebuilt).view_as(given)

        return change

    def _collect_mlp(self, index: int, layer: Layer, state: dict[str, Any]) -> Callable[..., None]:
        def change(module: nn.Module, output: Any) -> None:
            post = layer.mlp_post[layer.mlp_out.index(module)]
            part = applied(post, first_tensor(output).view_as(state["enter"])).clone()
            written = self.plain.factor * part
            writer = self.writers[f"m{index}"]
            # A parallel block's MLP may run before its heads; readers of later blocks see both.
            self.changes.append((writer, writer + 1, lambda cut: -cut.T[:, :, None, None] * written))

        return change

    def _read_logits(self, _: nn.Module, stream: Tensor) -> Tensor | None:
        if len(self.changes) <= 2 * len(self.plain.layers):
            return None  # NanoChat norms its embedding by the same module
        reader = self.readers["logits"]
        return self._rebuilt(stream, slice(reader, reader + 1))[0]


def _entered(graph: Any, edges: np.ndarray) -> np.ndarray:
    """The edges without those out of components that nothing enters."""
    edges = edges & graph.exists
    group = graph.shape.n_heads // graph.shape.n_kv_heads
    index = {name: i for i, name in enumerate(graph.readers)}
    while True:
        before = edges.copy()
        for row, name in enumerate(graph.writers):
            if name == "input":
                continue
            readers = [name]
            if name.startswith("a"):
                layer, head = name[1:].split(".")
                kv_head = int(head) // group
                readers = [f"{name}<q>", f"a{layer}.{kv_head}<k>", f"a{layer}.{kv_head}<v>"]
            if not edges[:, [index[reader] for reader in readers]].any():
                edges[row] = False
        if (edges == before).all():
            return edges


def _copied(output: Any) -> Any:
    if torch.is_tensor(output):
        return output.clone()
    if isinstance(output, tuple):
        return tuple(_copied(one) for one in output)
    return output


@contextmanager
def _hooks(before: Sequence[tuple[Any, Any]], after: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Changes of what modules are given, (module, given) → new or None, and of what they give."""
    with ExitStack() as stack:
        for module, change in before:

            def enter(module: nn.Module, args: Any, kwargs: Any, change: Any = change) -> Any:
                given = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                new = change(module, given)
                if new is None:
                    return None
                if "hidden_states" in kwargs:
                    return args, {**kwargs, "hidden_states": new}
                return (new, *args[1:]), kwargs

            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for module, change in after:
            hook = lambda module, _, output, change=change: change(module, output)  # noqa: E731
            stack.callback(module.register_forward_hook(hook).remove)
        yield
