"""Model families as configurations of transformers, small enough for a test: two layers, 32 numbers a token.

`FAMILIES` names them, `plain_model` builds one with seeded weights, noise on every parameter, so that biases
and norms matter, and `saved` writes it as a directory that `wb.load_model` reads. Nothing here uses the
workbench: what is computed with these models by transformers alone is the judge of it.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

N_LAYERS, N_HEADS, N_KV_HEADS, D_MODEL, D_HEAD, D_MLP, N_CTX = 2, 4, 2, 32, 8, 48, 64
SLIDING = 4  # shorter than the prompts, so that a window that is ignored shows

# Every spelling of these sizes in transformers; each configuration takes the ones that it knows.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), D_MODEL),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), N_LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), N_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), N_HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), N_HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"), D_MLP),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), D_MLP),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), N_CTX),
    "num_key_value_heads": N_KV_HEADS,
    "head_dim": D_HEAD,
    "d_kv": D_HEAD,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Family:
    """A configuration of transformers.

    Attributes:
        config: the name of its class.
        settings: what differs from the usual sizes.
        auto: the automatic class that builds the model.
        about: what of its shape is special, in a few words.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    auto: str = "AutoModelForCausalLM"


_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
_LATENT |= {"v_head_dim": 12, "num_key_value_heads": 4}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1}
_ROUTED |= {"topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
_LINEAR |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
_SCALES = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2}
_SCALES |= {"logits_scaling": 3.0}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": SLIDING}
_SEQ2SEQ = "AutoModelForSeq2SeqLM"
_ROPE = {"rope_theta": 10000.0}


def _yarn() -> dict[str, Any]:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    return {"rope_parameters": _ROPE | scaling}


FAMILIES: dict[str, Family] = {
    # Norm in front, blocks one after the other, learned positions.
    "gpt2": Family("GPT2Config", {}, "learned positions, tied"),
    "gpt2-untied": Family("GPT2Config", {"tie_word_embeddings": False}, "untied"),
    "gpt2-layer-scale": Family(
        "GPT2Config", {"scale_attn_by_inverse_layer_idx": True}, "scores scaled by layer"
    ),
    "gpt2-unscaled": Family("GPT2Config", {"scale_attn_weights": False}, "scores not scaled"),
    "gpt-neo": Family(
        "GPTNeoConfig",
        {"attention_types": [[["global", "local"], 1]], "window_size": SLIDING},
        "local attention, scores not scaled",
    ),
    "gpt-bigcode": Family("GPTBigCodeConfig", {}, "one kv head"),
    "gpt-bigcode-mha": Family("GPTBigCodeConfig", {"multi_query": False}, "q, k, v interleaved by head"),
    "starcoder2": Family("Starcoder2Config", {}, "grouped queries, layer norm, biases"),
    "starcoder2-sliding": Family("Starcoder2Config", {"sliding_window": SLIDING}, "sliding window"),
    "xglm": Family(
        "XGLMConfig", {"pad_token_id": 1, "eos_token_id": 2}, "sinusoidal positions, scaled embedding"
    ),
    "opt": Family("OPTConfig", {"pad_token_id": 1, "eos_token_id": 2}, "learned positions with an offset"),
    "opt-no-bias": Family(
        "OPTConfig",
        {"pad_token_id": 1, "enable_bias": False, "layer_norm_elementwise_affine": False},
        "no bias, norms without weights",
    ),
    "opt-350m": Family(
        "OPTConfig",
        {"pad_token_id": 1, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
        "norms behind the sum, projections",
    ),
    "bloom": Family("BloomConfig", {}, "alibi, norm of the embedding"),
    "bloom-residual-norm": Family(
        "BloomConfig", {"apply_residual_connection_post_layernorm": True}, "stream taken behind the norm"
    ),
    "mpt": Family("MptConfig", {}, "alibi, no bias"),
    "mpt-clip": Family("MptConfig", {"attn_config": {"clip_qkv": 1.0}}, "q, k and v clipped"),
    "openai-gpt": Family("OpenAIGPTConfig", {}, "norms behind the sum"),
    # Llama and its relatives.
    "llama": Family("LlamaConfig", {}, "grouped queries, rotary, gated MLP"),
    "llama-mha": Family("LlamaConfig", {"num_key_value_heads": 4}, "every head its own keys"),
    "llama-mqa": Family("LlamaConfig", {"num_key_value_heads": 1}, "one kv head"),
    "llama-biases": Family("LlamaConfig", {"attention_bias": True, "mlp_bias": True}, "biases everywhere"),
    "llama-tied": Family("LlamaConfig", {"tie_word_embeddings": True}, "tied"),
    "llama-wide-heads": Family("LlamaConfig", {"head_dim": 16}, "heads wider than d_model / n_heads"),
    "llama-yarn": Family("LlamaConfig", _yarn(), "scaled rotary positions"),
    "mistral": Family("MistralConfig", {"sliding_window": None}, "grouped queries"),
    "mistral-sliding": Family("MistralConfig", {"sliding_window": SLIDING}, "sliding window"),
    "ministral3": Family(
        "Ministral3Config",
        {
            "rope_parameters": _ROPE
            | {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 4,
                "llama_4_scaling_beta": 0.1,
            }
        },
        "queries scaled by position",
    ),
    "qwen2": Family("Qwen2Config", {}, "biases of q, k and v"),
    "qwen2-sliding": Family(
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": SLIDING, "max_window_layers": 1},
        "a window in upper layers",
    ),
    "qwen3": Family("Qwen3Config", {}, "norms of q and k, by head"),
    "smollm3": Family(
        "SmolLM3Config", {"no_rope_layers": [1, 0], "pad_token_id": 2}, "a layer without positions"
    ),
    "seed-oss": Family("SeedOssConfig", {"pad_token_id": 2}, "biases of q, k, v"),
    "hunyuan": Family("HunYuanDenseV1Config", {}, "norms of q and k behind the rotation"),
    "arcee": Family("ArceeConfig", {}, "squared ReLU, no gate"),
    "apertus": Family("ApertusConfig", {}, "xIELU, norms of q and k"),
    "nanochat": Family(
        "NanoChatConfig", {"final_logit_softcapping": 5.0}, "norms without weights, capped logits"
    ),
    "nemotron": Family("NemotronConfig", {}, "layer norm of 1 + weight, squared ReLU"),
    "jais2": Family("Jais2Config", {}, "layer norm, squared ReLU, biases"),
    "ernie4.5": Family("Ernie4_5Config", {"use_bias": True}, "interleaved rotary, biases"),
    "glm": Family("GlmConfig", {"pad_token_id": 2}, "partial rotary, one projection for gate and up"),
    "phi3": Family("Phi3Config", {"pad_token_id": 2}, "one projection for q, k, v"),
    "phi3-sliding": Family("Phi3Config", {"pad_token_id": 2, "sliding_window": SLIDING}, "sliding window"),
    "stablelm": Family("StableLmConfig", {}, "layer norm, partial rotary"),
    "stablelm-qk-norm": Family(
        "StableLmConfig", {"qk_layernorm": True, "use_qkv_bias": True}, "a norm for each head's q and k"
    ),
    "olmo": Family("OlmoConfig", {"pad_token_id": 2}, "norms without weights"),
    "olmo-clip": Family("OlmoConfig", {"pad_token_id": 2, "clip_qkv": 1.0}, "q, k and v clipped"),
    "bitnet": Family("BitNetConfig", {}, "a norm of all heads before they are projected"),
    "modernbert-decoder": Family(
        "ModernBertDecoderConfig",
        {
            "pad_token_id": 2,
            "cls_token_id": 0,
            "sep_token_id": 1,
            "local_attention": 2 * SLIDING,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "first block without a norm, local attention",
    ),
    # Attention and MLP side by side.
    "gptj": Family("GPTJConfig", {"rotary_dim": 4}, "parallel, one norm"),
    "codegen": Family("CodeGenConfig", {"rotary_dim": 4}, "parallel, one norm, q, v, k in groups"),
    "neox": Family("GPTNeoXConfig", {}, "parallel, two norms"),
    "neox-sequential": Family("GPTNeoXConfig", {"use_parallel_residual": False}, "sequential"),
    "neox-no-bias": Family("GPTNeoXConfig", {"attention_bias": False}, "attention without bias"),
    "phi": Family("PhiConfig", {}, "parallel, one norm, bias of the unembedding"),
    "phi-qk-norm": Family("PhiConfig", {"qk_layernorm": True, "num_key_value_heads": 4}, "norms of q and k"),
    "stablelm-parallel": Family("StableLmConfig", {"use_parallel_residual": True}, "parallel, one norm"),
    "falcon-7b": Family("FalconConfig", {}, "parallel, one norm, one kv head"),
    "falcon-40b": Family(
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        "parallel, two norms, grouped queries",
    ),
    "falcon-11b": Family(
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "parallel, one norm, grouped queries",
    ),
    "falcon-rw": Family(
        "FalconConfig",
        {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
        "alibi, sequential, biases",
    ),
    "cohere": Family("CohereConfig", {"logit_scale": 0.25}, "parallel, one norm, scaled logits"),
    "cohere-qk-norm": Family("CohereConfig", {"use_qk_norm": True}, "norms of q and k"),
    "cohere2": Family(
        "Cohere2Config", _ALTERNATING | {"logit_scale": 0.25}, "parallel, layers without positions"
    ),
    # Norms behind a block's parts, caps, scales.
    "gemma": Family("GemmaConfig", {}, "norm of 1 + weight, scaled embedding"),
    "gemma2": Family(
        "Gemma2Config",
        _ALTERNATING | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0},
        "norms behind, capped scores and logits",
    ),
    "gemma3": Family("Gemma3TextConfig", _ALTERNATING, "norms behind, norms of q and k"),
    "gemma4": Family(
        "Gemma4TextConfig",
        _ALTERNATING | {"hidden_size_per_layer_input": 0, "global_head_dim": D_HEAD},
        "norms behind, scaled layers",
    ),
    "vaultgemma": Family("VaultGemmaConfig", _ALTERNATING, "capped scores and logits"),
    "glm4": Family("Glm4Config", {"pad_token_id": 2}, "norms in front and behind"),
    "olmo2": Family("Olmo2Config", {"pad_token_id": 2}, "norms behind only, norms over all heads"),
    "olmo3": Family("Olmo3Config", _ALTERNATING | {"pad_token_id": 2}, "norms behind only, sliding window"),
    "exaone4": Family("Exaone4Config", _ALTERNATING, "norms behind only, norms of q and k by head"),
    "granite": Family("GraniteConfig", _SCALES, "scaled stream, scores and logits"),
    # Mixtures of experts.
    "mixtral": Family("MixtralConfig", _MOE, "mixture of experts"),
    "phimoe": Family(
        "PhimoeConfig",
        _MOE | {"lm_head_bias": True, "attention_bias": True},
        "mixture of experts, layer norm",
    ),
    "qwen2-moe": Family("Qwen2MoeConfig", _MOE | {"shared_expert_intermediate_size": 24}, "a shared expert"),
    "qwen3-moe": Family("Qwen3MoeConfig", _MOE, "mixture of experts, norms of q and k"),
    "olmoe": Family("OlmoeConfig", _MOE | {"pad_token_id": 2}, "norms over all heads"),
    "flex-olmo": Family(
        "FlexOlmoConfig", _MOE | {"pad_token_id": 2}, "norms behind only, mixture of experts"
    ),
    "granite-moe": Family("GraniteMoeConfig", _MOE | _SCALES, "scaled stream and logits"),
    "gpt-oss": Family(
        "GptOssConfig",
        _MOE | _ALTERNATING | {"rope_parameters": _ROPE | {"rope_type": "default"}},
        "attention sinks, sliding window",
    ),
    "ernie4.5-moe": Family(
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1},
        "dense below, experts above",
    ),
    "glm4-moe": Family(
        "Glm4MoeConfig", _ROUTED | {"use_qk_norm": True, "num_mtp_layers": 0}, "dense below, experts above"
    ),
    "minimax-m2": Family("MiniMaxM2Config", _MOE, "norms over all heads"),
    "afmoe": Family(
        "AfmoeConfig",
        _MOE | _ALTERNATING | {"num_shared_experts": 1, "num_dense_layers": 1},
        "gated heads, norms behind",
    ),
    "laguna": Family(
        "LagunaConfig",
        _MOE
        | _ALTERNATING
        | {"shared_expert_intermediate_size": 24, "num_attention_heads_per_layer": [4, 4]},
        "gated heads",
    ),
    "jetmoe": Family("JetMoeConfig", _MOE | {"kv_channels": D_HEAD}, "experts in attention too"),
    "llama4": Family(
        "Llama4TextConfig",
        _MOE
        | {
            "intermediate_size_mlp": D_MLP,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 8,
            "moe_layers": [1],
        },
        "attention in chunks, layers without positions",
    ),
    # Latent attention.
    "deepseek-v2": Family("DeepseekV2Config", _LATENT | _ROUTED, "latent attention"),
    "deepseek-v3": Family("DeepseekV3Config", _LATENT | _ROUTED | {"num_mtp_layers": 0}, "latent attention"),
    "youtu": Family("YoutuConfig", _LATENT, "latent attention, dense"),
    "glm4-moe-lite": Family("Glm4MoeLiteConfig", _LATENT | _ROUTED | {"q_lora_rank": 8}, "latent attention"),
    # State-space models, recurrences, and mixtures of them with attention.
    "mamba": Family("MambaConfig", {"state_size": 8, "pad_token_id": 2}, "no attention"),
    "mamba2": Family(
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8, "pad_token_id": 2},
        "no attention",
    ),
    "falcon-mamba": Family("FalconMambaConfig", {"state_size": 8, "pad_token_id": 2}, "no attention"),
    "rwkv": Family("RwkvConfig", {}, "no attention"),
    "bamba": Family(
        "BambaConfig", _MAMBA | {"attn_layer_indices": [1], "pad_token_id": 2}, "one layer of attention"
    ),
    "jamba": Family(
        "JambaConfig",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "pad_token_id": 2,
        },
        "one layer of attention",
    ),
    "falcon-h1": Family(
        "FalconH1Config", _MAMBA | {"mamba_d_ssm": 64, "pad_token_id": 2}, "attention and states side by side"
    ),
    "zamba2": Family(
        "Zamba2Config",
        {
            "n_mamba_heads": 8,
            "mamba_d_state": 8,
            "layers_block_type": ["mamba", "hybrid"],
            "num_key_value_heads": 4,
            "use_mamba_kernels": False,
            "pad_token_id": 2,
        },
        "shared blocks of attention",
    ),
    "granite-moe-hybrid": Family(
        "GraniteMoeHybridConfig",
        _MOE | _SCALES | _MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
        "one layer of attention",
    ),
    "granite-moe-attention": Family(
        "GraniteMoeHybridConfig",
        _MOE | _SCALES | _MAMBA | {"layer_types": ["attention", "attention"], "shared_intermediate_size": 24},
        "two MLPs side by side",
    ),
    "recurrent-gemma": Family(
        "RecurrentGemmaConfig",
        {"block_types": ["recurrent", "attention"], "attention_window_size": 8, "pad_token_id": 2},
        "recurrences and local attention",
    ),
    "lfm2": Family(
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention"], "pad_token_id": 2},
        "convolutions and attention",
    ),
    "qwen3-next": Family(
        "Qwen3NextConfig",
        _MOE | _LINEAR | {"shared_expert_intermediate_size": 24},
        "linear and gated attention",
    ),
    "qwen3.5": Family("Qwen3_5TextConfig", _LINEAR, "linear and gated attention"),
    "olmo-hybrid": Family(
        "OlmoHybridConfig", _LINEAR | {"pad_token_id": 2}, "linear attention, norms behind"
    ),
    # Encoders, and encoders with a decoder.
    "bert": Family("BertConfig", {"pad_token_id": 2}, "sees both ways", "AutoModelForMaskedLM"),
    "bert-decoder": Family("BertConfig", {"pad_token_id": 2, "is_decoder": True}, "norms behind the sum"),
    "roberta": Family("RobertaConfig", {"pad_token_id": 2}, "sees both ways", "AutoModelForMaskedLM"),
    "t5": Family("T5Config", {"pad_token_id": 2}, "encoder and decoder", _SEQ2SEQ),
    "bart": Family(
        "BartConfig",
        {"pad_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 1},
        "encoder and decoder",
        _SEQ2SEQ,
    ),
    "mbart": Family(
        "MBartConfig",
        {"pad_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 1},
        "encoder and decoder",
        _SEQ2SEQ,
    ),
    "longt5": Family("LongT5Config", {"pad_token_id": 2, "local_radius": 4}, "encoder and decoder", _SEQ2SEQ),
    "pegasus": Family(
        "PegasusConfig", {"pad_token_id": 2, "forced_eos_token_id": 1}, "encoder and decoder", _SEQ2SEQ
    ),
}


@cache
def tokenizer() -> Any:
    """A byte-level vocabulary of 284 tokens; `<s>` begins a text."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["the red cat sat on a mat", "one two three four"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")


def config_of(name: str) -> Any:
    """The configuration of a family."""
    family = FAMILIES[name]
    kind = getattr(transformers, family.config)
    known = set(getattr(kind, "__dataclass_fields__", {}))
    sizes = {"vocab_size": len(tokenizer())}
    sizes |= {key: size for key, size in _SIZES.items() if key in known}
    return kind(**(sizes | family.settings))


def plain_model(name: str) -> Any:
    """A family's model in eval mode, by transformers alone; its weights are the same every time."""
    build = getattr(transformers, FAMILIES[name].auto).from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config_of(name), attn_implementation="eager")
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn_like(weight)
                # Matrices of this size give scores and sums near 1; biases and norms differ from token to token.
                weight.copy_(0.25 * noise if weight.ndim > 1 else weight + 0.2 * noise)
    model.tie_weights()
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    """The folder, with the model and a tokenizer in it."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
