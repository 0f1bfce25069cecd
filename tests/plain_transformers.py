"""Small random models of many families as plain transformers, and what hooks in them say of heads and edges.

The right values of tests come from here: nothing of the workbench computes them. Each family is a config and the names
of the parts of its blocks; `bridge_of` wraps a copy, so that the plain model stays as it is.
"""

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts

D_VOCAB, D_HEAD, ANSWERS, WRONG = 60, 8, (7, 9), (8, 11)
ROWS = [[2, 5, 9, 3, 17, 22], [2, 7, 8, 30, 22, 17]]
COMMON = {"vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 0,
          "eos_token_id": 1, "pad_token_id": None}  # fmt: skip
GPT = {"vocab_size": D_VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}


@dataclass(frozen=True)
class Layout:
    """A config, and where plain transformers keep the parts of its blocks.

    Attributes:
        out: the output map of attention.  attn_post: the norm after it, if any.
        mlp_norm: the norm before the MLP; None where it reads the stream as it is.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=lambda: COMMON)
    blocks: str = "model.layers"
    out: str = "self_attn.o_proj"
    attn_post: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp: str = "mlp"


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
POST = {"attn_post": "post_attention_layernorm", "mlp_norm": None}
LAYOUTS = {
    "gemma2": Layout("Gemma2Config", {"head_dim": D_HEAD}, attn_post="post_attention_layernorm",
                     mlp_norm="pre_feedforward_layernorm"),
    "cohere": Layout("CohereConfig", mlp_norm="input_layernorm"),
    "starcoder2": Layout("Starcoder2Config"),
    "olmo": Layout("OlmoConfig"),
    "phi": Layout("PhiConfig", out="self_attn.dense", mlp_norm="input_layernorm"),
    "qwen3": Layout("Qwen3Config", {"head_dim": D_HEAD}),
    "gptj": Layout("GPTJConfig", {"rotary_dim": 4}, GPT, "transformer.h", "attn.out_proj", mlp_norm="ln_1"),
    "bloom": Layout("BloomConfig", {}, {"vocab_size": D_VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4},
                    "transformer.h", "self_attention.dense"),
    "mpt": Layout("MptConfig", {}, {"vocab_size": D_VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4,
                                    "max_seq_len": 64}, "transformer.blocks", "attn.out_proj",
                  mlp_norm="norm_2", mlp="ffn"),
    "stablelm": Layout("StableLmConfig"),
    "mixtral": Layout("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": Layout("Qwen2MoeConfig", EXPERTS | {"moe_intermediate_size": 24,
                                                     "shared_expert_intermediate_size": 24}),
    "qwen3_moe": Layout("Qwen3MoeConfig", EXPERTS | {"moe_intermediate_size": 24, "head_dim": D_HEAD}),
    "granitemoe": Layout("GraniteMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2,
                                              "residual_multiplier": 0.5}),
    # Queries and keys are normed over all heads together.
    "olmoe": Layout("OlmoeConfig", EXPERTS),
    "minimax_m2": Layout("MiniMaxM2Config", {"num_local_experts": 4, "num_experts_per_tok": 2,
                                             "head_dim": D_HEAD}),
    # The same, and no norm in front of attention and MLP.
    "olmo2": Layout("Olmo2Config", **POST),
    "olmo3": Layout("Olmo3Config", {"sliding_window": 4}, **POST),
    "flex_olmo": Layout("FlexOlmoConfig", EXPERTS, **POST),
    "exaone4": Layout("Exaone4Config", {"sliding_window": 4}, **POST),
}  # fmt: skip


def randomised(model: Any) -> Any:
    """The model with large random weights, so that every part of it matters; in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 0.25)
            else:
                parameter.add_(noise * 0.2)
    model.tie_weights()
    return model.eval()


@cache
def plain_model(family: str) -> Any:
    """The Hugging Face model of a family; not to be changed."""
    layout = LAYOUTS[family]
    config = getattr(transformers, layout.config)(**(layout.common | layout.settings))
    config._attn_implementation = "eager"
    return randomised(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


def bridge_of(plain: Any) -> Any:
    """A bridge around a copy of a plain model, which building a bridge would change."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    copied = copy.deepcopy(plain)
    return build_bridge_from_module(copied, type(copied).__name__, hf_config=copied.config).eval()


@cache
def bridge(family: str) -> Any:
    """The bridge of a family; not to be changed."""
    return bridge_of(plain_model(family))


def pairs() -> PromptPairs:
    """Two pairs whose third token differs."""
    corrupt = [[*row[:2], 4, *row[3:]] for row in ROWS]
    answers, wrong = (torch.tensor(tokens)[:, None, None] for tokens in (ANSWERS, WRONG))
    return PromptPairs(Prompts.of(ROWS), Prompts.of(corrupt), answers, wrong)


def differences(model: Any) -> Tensor:
    """[example]: the logit differences of `pairs` in a plain model, prompt by prompt."""
    measured = []
    for row, answer, wrong in zip(ROWS, ANSWERS, WRONG, strict=True):
        logits = model(torch.tensor([row])).logits[0, -1]
        measured.append(logits[answer] - logits[wrong])
    return torch.stack(measured)


def parts(family: str, layer: int, model: Any) -> tuple[Any, Any, Any, Any]:
    """Output map of attention, norm after it, norm before the MLP, and MLP of a block; None where it has none."""
    layout = LAYOUTS[family]
    block = model.get_submodule(f"{layout.blocks}.{layer}")
    names = layout.out, layout.attn_post, layout.mlp_norm, layout.mlp
    out, attn_post, mlp_norm, mlp = (None if name is None else block.get_submodule(name) for name in names)
    return out, attn_post, mlp_norm, mlp


@torch.no_grad()
def without_head(family: str) -> Tensor:
    """[example]: the logit differences where nobody reads head 0.0."""
    model = copy.deepcopy(plain_model(family))
    out, *_ = parts(family, 0, model)
    out.weight[:, :D_HEAD] = 0
    return differences(model)


def edge(family: str) -> tuple[Tensor, Tensor]:
    """[example]: by how much m falls when the edge a0.0->m1 carries 0, and the first-order estimate of it."""
    model, share = plain_model(family), torch.zeros((), requires_grad=True)
    out, attn_post, *_ = parts(family, 0, model)
    *_, mlp_norm, mlp = parts(family, 1, model)
    seen = {}

    def change() -> Tensor:
        """What the MLP's input changes by."""
        cut = seen["z"].clone()
        cut[..., :D_HEAD] = 0
        bias = 0 if getattr(out, "bias", None) is None else out.bias
        whole, without = (z @ out.weight.T + bias for z in (seen["z"], cut))
        if attn_post is None:
            return without - whole
        return attn_post(without) - attn_post(whole)

    def moved(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the MLP reads, `share` of the way."""
        stream = args[0] if mlp_norm is None else seen["stream"]
        stream = stream + share * change()
        return (stream if mlp_norm is None else mlp_norm.forward(stream), *args[1:])

    hooks = [
        out.register_forward_pre_hook(lambda _, args: seen.update(z=args[0].detach())),
        mlp.register_forward_pre_hook(moved),
    ]
    if mlp_norm is not None:
        hooks.append(mlp_norm.register_forward_pre_hook(lambda _, args: seen.update(stream=args[0].detach())))
    try:
        base = differences(model)
        slopes = [torch.autograd.grad(one, share, retain_graph=True)[0] for one in base]
        with torch.no_grad():
            share.fill_(1.0)
            cut = differences(model)
    finally:
        for hook in hooks:
            hook.remove()
    return base.detach() - cut, -torch.stack(slopes)
