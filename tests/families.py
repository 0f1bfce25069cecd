"""Small random-weight models of every family, and prompt pairs for them: built from config, seeded, offline.

Every parameter gets noise, so that biases and norms matter. Models are cached: a test that changes one (train mode,
weights) builds its own with `build`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.capture import capture_pairs
from workbench.engine.hooked.circuits import circuit_logits
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.stores.store import ActivationStore

N_LAYERS, N_HEADS, N_KV_HEADS, D_MODEL, D_HEAD, N_CTX, D_VOCAB = 2, 4, 2, 32, 8, 32, 50
FAMILIES = ("gpt2", "llama", "neox", "native")
NATIVES = ("native-no-norm", "native-attn-only", "native-attn-only-no-norm")
VARIANTS = ("gptj", "qwen2")  # parallel blocks that share one norm; grouped queries with biases
SEQUENTIAL = ("gpt2", "llama", "native")


def build(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A bridge of two layers in eval mode; `llama` has two kv heads for its four heads, `neox` parallel blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _bare(family).eval()
        noise = (
            0.1 if family.endswith("no-norm") else 0.2
        )  # without a norm, activations would grow to hundreds
        for parameter in model.parameters():
            parameter.data = parameter.data + noise * torch.randn_like(parameter)
    return model if dtype == torch.float32 else model.to(dtype)


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The cached model of a family: not to be changed."""
    return build(family, dtype=dtype, seed=seed)


def native(**settings: Any) -> Any:
    """TransformerLens' own model with these settings in place of the usual ones."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    usual = {
        "n_layers": N_LAYERS,
        "n_heads": N_HEADS,
        "d_model": D_MODEL,
        "d_head": D_HEAD,
        "n_ctx": N_CTX,
        "d_vocab": D_VOCAB,
    }
    usual |= {"act_fn": "relu", "normalization_type": "LN", "seed": 0}
    return TransformerBridge.boot_native(TransformerBridgeConfig(**(usual | settings))).eval()


def _bare(family: str) -> Any:
    import transformers
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    if family.startswith("native"):
        norm = None if family.endswith("no-norm") else "LN"
        return native(normalization_type=norm, attn_only="attn-only" in family)
    common = {
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
    }
    common |= {"vocab_size": D_VOCAB, "max_position_embeddings": N_CTX}
    short = {
        "n_layer": N_LAYERS,
        "n_head": N_HEADS,
        "n_embd": D_MODEL,
        "vocab_size": D_VOCAB,
        "n_positions": N_CTX,
    }
    short |= {"resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}
    if family == "gpt2":
        config, kind = transformers.GPT2Config(**short), transformers.GPT2LMHeadModel
    elif family == "llama":
        config, kind = (
            transformers.LlamaConfig(**common, num_key_value_heads=N_KV_HEADS),
            transformers.LlamaForCausalLM,
        )
    elif family == "neox":
        config, kind = transformers.GPTNeoXConfig(**common), transformers.GPTNeoXForCausalLM
    elif family == "gptj":
        config, kind = transformers.GPTJConfig(**short, rotary_dim=4), transformers.GPTJForCausalLM
    elif family == "qwen2":
        config, kind = (
            transformers.Qwen2Config(**common, num_key_value_heads=N_KV_HEADS),
            transformers.Qwen2ForCausalLM,
        )
    elif family == "gemma2":  # grouped queries, and norms behind attention and the MLP
        config = transformers.Gemma2Config(**common, num_key_value_heads=N_KV_HEADS, head_dim=D_HEAD)
        kind = transformers.Gemma2ForCausalLM
    elif family == "granite":
        scales = {"residual_multiplier": 0.5, "logits_scaling": 3.0}
        config, kind = transformers.GraniteConfig(**common, **scales), transformers.GraniteForCausalLM
    else:
        raise ValueError(f"There is no family {family!r}.")
    return build_bridge_from_module(kind(config), kind.__name__, hf_config=config)


def make_pairs(
    lengths: Sequence[int] = (6, 6, 6), *, seed: int = 0, changed: Sequence[int] = (2,), bos: bool = False
) -> PromptPairs:
    """Random pairs of these lengths whose sides differ at the positions `changed`; token 0 begins each when `bos`."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = [], []
    for length in lengths:
        row = torch.randint(1, D_VOCAB, (length,), generator=generator)
        row[0] = 0 if bos else row[0]
        other = row.clone()
        for at in changed:
            other[at] = (other[at] + 6) % (D_VOCAB - 1) + 1
        clean.append(row.tolist())
        corrupt.append(other.tolist())
    answers = torch.randint(0, D_VOCAB, (len(lengths), 1, 1), generator=generator)
    return PromptPairs(
        Prompts.of(clean, bos=bos), Prompts.of(corrupt, bos=bos), answers, (answers + 1) % D_VOCAB
    )


def ragged(lengths: list[int] | tuple[int, ...], *, seed: int = 0, bos: bool = False) -> Prompts:
    """Random prompts of these lengths; those of more than two tokens have a position X."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, D_VOCAB, n).tolist() for n in lengths]
    return Prompts.of(rows, positions=[{"X": n // 2} if n > 2 else {} for n in lengths], bos=bos)


@cache
def pairs_and_stores(
    family: str, lengths: tuple[int, ...] = (6, 6, 6), dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[PromptPairs, ActivationStore, ActivationStore]:
    """Pairs, and the stores of their clean and corrupt run."""
    pairs = make_pairs(lengths, seed=seed)
    return pairs, *capture_pairs(model_of(family, dtype), pairs)


def run_circuits(
    model: Any, circuits: np.ndarray | Tensor, bound: Bound, graph: Graph | None = None
) -> Tensor:
    """[circuit, example, pos, vocab]: the logits of circuits of the model's graph, on hooks."""
    return circuit_logits(model, graph or Graph.of(model), torch.as_tensor(circuits).float(), bound)


def asked(model: Any, tokens: Tensor, write: Mapping[str, Tensor], read: str) -> Tensor:
    """What the hook `read` holds in a run in which the hooks of `write` hold these tensors."""
    kept = {}

    def keep(value, hook):
        kept["value"] = value.detach().clone()

    hooks = [(name, lambda value, hook, new=new: new.clone().view_as(value)) for name, new in write.items()]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[*hooks, (read, keep)])
    return kept["value"]


def logit_difference(logits: Tensor, pairs: PromptPairs) -> Tensor:
    """[example]: answer minus wrong at the last position, written out for prompts of one length."""
    last, rows = logits[:, -1], torch.arange(len(logits))
    return last[rows, pairs.answers[:, 0, 0]] - last[rows, pairs.wrong[:, 0, 0]]


@cache
def logit_size(model: Any, pairs: PromptPairs) -> float:
    """The largest logit of either side: the magnitude that effects are rounded at, whatever is left of it."""
    with torch.no_grad():
        return max(float(model(side.tokens).abs().max()) for side in (pairs.clean, pairs.corrupt))


def max_difference(a: Any, b: Any) -> float:
    """The largest |a - b|; NaN cells must be at the same places."""
    a, b = (
        torch.as_tensor(each.values if isinstance(each, xr.DataArray) else each).detach().double()
        for each in (a, b)
    )
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    assert torch.equal(a.isnan(), b.isnan()), "NaN cells differ"
    return float((a - b).nan_to_num().abs().max()) if a.numel() else 0.0


def untyped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, without `checked` and the tests' type checker: for refusals of its own, of words and numbers."""
    return inspect.unwrap(function)
