"""The parts of a model of transformers: found by what flows through its modules in one run, and by few names.

Read `layer_of`, which finds the projection that the heads end in and the MLP, then `find_parts_of`, which
finds what makes q, k and v, and the norms. Nothing here uses the workbench.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_OUT = ("o_proj", "out_proj", "dense", "c_proj", "Wo", "wo")
_MLPS = ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn", "mlp_block", "shared_mlp")
_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")


class Unclear(Exception):
    """Why a circuit of this model cannot be worked out here."""


@dataclass
class Port:
    """What makes q, k or v: a projection, and its columns [head, d_head] for each head."""

    module: nn.Module
    columns: Tensor


@dataclass
class Layer:
    """The parts of a block; `heads` is the projection of the heads' outputs, None in a block without heads."""

    block: nn.Module
    heads: nn.Module | None
    mlp_in: list[nn.Module]
    mlp_out: list[nn.Module]
    ports: dict[str, Port] = field(default_factory=dict)
    attn_norm: nn.Module | None = None
    attn_post: nn.Module | None = None
    mlp_norm: nn.Module | None = None
    mlp_post: list[nn.Module | None] = field(default_factory=list)


def layer_of(block: nn.Module) -> Layer:
    """The projection of a block's heads and its MLP, by their names."""
    heads = None
    for path, module in block.named_modules():
        above, _, leaf = path.rpartition(".")
        above = above.lower()
        attends = ("attn" in above or "attention" in above) and "linear_attn" not in above
        if attends and leaf in _OUT and hasattr(module, "weight"):
            heads = module
            break
    children = dict(block.named_children())
    mlps = [children[name] for name in _MLPS if children.get(name) is not None]
    if mlps:
        return Layer(block, heads, mlps, [_written_by(mlp) for mlp in mlps])
    if "fc1" in children:
        return Layer(block, heads, [children["fc1"]], [children["fc2"]])
    if "intermediate" in children:
        return Layer(block, heads, [children["intermediate"]], [children["output"].dense])
    return Layer(block, heads, [], [])


def _written_by(mlp: nn.Module) -> nn.Module:
    """What writes an MLP's output: BLOOM's and MPT's MLPs add the stream to it before they return."""
    for name in ("dense_4h_to_h", "down_proj"):
        if isinstance(getattr(mlp, name, None), nn.Module):
            return getattr(mlp, name)
    return mlp


def find_parts_of(layer: Layer, seen: Mapping[nn.Module, Any], n_heads: int, config: Any) -> None:
    """Fill in what makes q, k and v, and the norms."""
    if layer.heads is None or not layer.mlp_in:
        raise Unclear("a block without heads or without an MLP")
    modules = dict(layer.block.named_modules())
    part = next(one for one in layer.block.children() if layer.heads in set(one.modules()))
    layer.ports = _ports(part, seen[layer.heads][0].shape[-1] // n_heads, n_heads, config)
    projections = {port.module for port in layer.ports.values()}
    enter = seen[layer.block][0]
    read = seen[next(iter(projections))][0]
    if any(not equal(seen[one][0], read) for one in projections):
        raise Unclear("q, k and v read different things")
    mlp_modules = {one for mlp in layer.mlp_in for one in mlp.modules()}
    for name, module in modules.items():
        others = module not in projections and module not in mlp_modules and hasattr(module, "weight")
        if others and module in seen and isinstance(module, nn.Linear) and equal(seen[module][0], read):
            raise Unclear(f"{name} reads the stream beside q, k and v")
    outside = [one for one in modules.values() if one in seen and one not in set(part.modules())]
    outside = [one for one in outside if one is not layer.block and one not in mlp_modules]
    layer.attn_norm = _made_by(outside, seen, read, unless=enter)
    mlp_read = seen[layer.mlp_in[0]][0].view_as(enter)
    layer.mlp_norm = _made_by(outside, seen, mlp_read, unless=enter)
    layer.attn_post = _reader_of(outside, seen, seen[layer.heads][1])
    layer.mlp_post = [_reader_of(outside, seen, seen[one][1].view_as(enter)) for one in layer.mlp_out]


def _made_by(
    modules: list[nn.Module], seen: Mapping[nn.Module, Any], value: Tensor, *, unless: Tensor
) -> Any:
    """The module whose output that is; None where it is the stream itself."""
    if equal(value, unless):
        return None
    for module in modules:
        given, output = seen[module]
        if equal(output, value) and not equal(given, value):
            return module
    return None


def _reader_of(modules: list[nn.Module], seen: Mapping[nn.Module, Any], value: Tensor) -> Any:
    """The module that reads that and changes it, such as a norm behind a part."""
    for module in modules:
        given, output = seen[module]
        if equal(given, value) and not equal(output, value):
            return module
    return None


def _ports(part: nn.Module, width: int, n_heads: int, config: Any) -> dict[str, Port]:
    """What makes q, k and v of every head."""
    by_leaf = {path.rpartition(".")[2]: module for path, module in part.named_modules()}
    for names in _SEPARATE:
        if all(name in by_leaf for name in names):
            ports = {}
            for port, name in zip("qkv", names, strict=True):
                size = by_leaf[name].weight.shape[0]
                ports[port] = Port(by_leaf[name], torch.arange(size).view(-1, width))
            if len(ports["q"].columns) != n_heads:
                raise Unclear("the projection of q makes more than q")
            return ports
    name = next((name for name in _FUSED if name in by_leaf), None)
    if name is None:
        raise Unclear("no projections of q, k and v were found")
    module = by_leaf[name]
    size = module.weight.numel() // config.hidden_size
    columns = torch.arange(size)
    if config.model_type == "codegen":
        groups = columns.view(4, 3, -1, width)  # each of four groups: q, v, k
        parts = [groups[:, 0].flatten(0, 1), groups[:, 2].flatten(0, 1), groups[:, 1].flatten(0, 1)]
    elif config.model_type == "falcon" and config.new_decoder_architecture:
        groups = columns.view(config.num_kv_heads, -1, width)
        parts = [groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]]
    elif _is_interleaved(config):
        parts = list(columns.view(n_heads, 3, width).unbind(1))
    else:
        n_kv_heads = (size // width - n_heads) // 2
        parts = list(columns.view(-1, width).split([n_heads, n_kv_heads, n_kv_heads]))
    return {port: Port(module, part) for port, part in zip("qkv", parts, strict=True)}


def _is_interleaved(config: Any) -> bool:
    if config.model_type in ("falcon", "gpt_bigcode"):
        return not config.multi_query
    return config.model_type in ("gpt_neox", "bloom")


@torch.no_grad()
def tensors_seen(
    model: nn.Module, row: Sequence[int], *, last: bool = False
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """What every module is given and gives, in order of the ends of their runs.

    Args:
        last: of its last run, where it runs several times; else of its first.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    given: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = _argument(args, kwargs)
        if tensor is not None:
            kept = tensor.clone()  # some blocks add in place
            given[module] = kept if last else given.get(module, kept)

    def after(module: nn.Module, _: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if module in given and tensor is not None:
            kept = (given[module], tensor.clone())
            seen[module] = kept if last else seen.get(module, kept)

    with ExitStack() as stack:
        for module in model.modules():
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
            stack.callback(module.register_forward_hook(after).remove)
        model(torch.tensor([list(row)]))
    return seen


def _argument(args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    found = [one for one in args if torch.is_tensor(one) and one.is_floating_point()]
    found += [one for one in kwargs.values() if torch.is_tensor(one) and one.is_floating_point()]
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]
    return found[0] if found else None


def first_tensor(output: Any) -> Any:
    if torch.is_tensor(output):
        return output
    if isinstance(output, tuple | list) and output:
        return first_tensor(output[0])
    return None


def applied(module: nn.Module | None, value: Tensor) -> Tensor:
    """The module's output, without its hooks."""
    return value if module is None else module.forward(value)


def equal(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())
