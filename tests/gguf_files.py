"""A GGUF file of a small Llama, written tensor by tensor as llama.cpp's converter writes one."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from directories import tokenizer

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_BLOCK = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write(
    path: Path,
    model: Any,
    *,
    without: Iterable[str] = (),
    extra: Mapping[str, np.ndarray] | None = None,
    split: str = "gpt-2",
) -> Path:
    """The file of a plain `LlamaForCausalLM` and of the tokenizer of `directories`, which adds BOS.

    Args:
        without: names of its tensors to leave out, as llama.cpp spells them.
        extra: further tensors.
        split: how texts are split before merging, by name.
    """
    from gguf import GGUFWriter  # pyright: ignore[reportMissingImports]

    config, words = model.config, tokenizer()
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(words.get_vocab(), key=words.get_vocab().__getitem__)
    vocabulary += [f"<unused{i}>" for i in range(config.vocab_size - len(vocabulary))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(vocabulary)
    writer.add_token_types(
        [3 if token.startswith("<") and token.endswith(">") else 1 for token in vocabulary]
    )
    writer.add_token_merges(_merges(words))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    tensors = {_name(name): _weight(name, weight, config) for name, weight in model.state_dict().items()}
    for name, tensor in (tensors | dict(extra or {})).items():
        if name not in set(without):
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _merges(words: Any) -> list[str]:
    merges = json.loads(words.backend_tokenizer.to_str())["model"]["merges"]
    return [" ".join(merge) for merge in merges]


def _name(name: str) -> str:
    """The name of a tensor in a file of llama.cpp."""
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, *inner, kind = name.split(".")
    return f"blk.{layer}.{_IN_BLOCK['.'.join(inner)]}.{kind}"


def _weight(name: str, weight: torch.Tensor, config: Any) -> np.ndarray:
    """Its numbers there: the two halves of each query and key, which rotate together, are interleaved."""
    n_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
        name.split(".")[-2]
    )
    if n_heads is not None:
        halves = weight.reshape(n_heads, 2, -1, weight.shape[1])  # [head, half, d_head / 2, d_model]
        weight = halves.transpose(1, 2).reshape(weight.shape)
    return weight.float().contiguous().numpy()
