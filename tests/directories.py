"""Model directories as people have them: small, random, of several families, with a tokenizer or without.

Written by plain transformers. `directory` is shared and not to be changed; `copy_of` is a test's own.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from families import native
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from workbench.models.load import load_model

_ROOT = tempfile.TemporaryDirectory(prefix="workbench-models-")
D_VOCAB = 300
_SIZES: dict[str, Any] = {
    "vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
_TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES, **_TOKENS, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=D_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, **_TOKENS
    ),
    "neox": lambda: transformers.GPTNeoXConfig(**_SIZES, **_TOKENS),
    # Its embedding and unembedding are tied, as those of GPT-2 are.
    "qwen2": lambda: transformers.Qwen2Config(
        **_SIZES, **_TOKENS, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=D_VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
        max_position_embeddings=64, word_embed_proj_dim=32, **_TOKENS
    ),
}  # fmt: skip
NATIVE = {
    "n_layers": 2, "n_heads": 4, "d_model": 32, "d_head": 8, "d_mlp": 48, "n_ctx": 32, "d_vocab": D_VOCAB,
    "act_fn": "relu", "normalization_type": "LN",
}  # fmt: skip


@cache
def tokenizer(bos: str | None = "<s>", *, adds_bos: bool = True, chat: str | None = None) -> Any:
    """A byte-level tokenizer of 300 tokens, with a BOS token or without, that it puts in front by itself or not."""
    vocabulary = Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    vocabulary.train_from_iterator(
        ["the red cat sat on a mat", "one two three four", "every dog has its day"] * 20, trainer
    )
    names: dict[str, Any] = {"eos_token": "</s>", "chat_template": chat}
    if bos:
        names |= {"bos_token": bos, "add_bos_token": adds_bos}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary, **names)


def save(config: Any, folder: Path, *, words: Any = None, seed: int = 0) -> Any:
    """The plain model of a config with random weights, saved in a folder, its tokenizer beside it."""
    kind = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        kind = transformers.AutoModelForSeq2SeqLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    if words is not None:
        words.save_pretrained(folder)
    return model


@cache
def plain(family: str) -> Any:
    """The model of `directory(family)`, as transformers loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory(family), attn_implementation="eager"
    ).eval()


@cache
def directory(
    family: str,
    *,
    bos: str | None = "<s>",
    adds_bos: bool = True,
    chat: str | None = None,
    with_tokenizer: bool = True,
) -> Path:
    """The directory of a family, or of a native model of TransformerLens."""
    folder = Path(tempfile.mkdtemp(prefix=f"{family}-", dir=_ROOT.name))
    words = tokenizer(bos, adds_bos=adds_bos, chat=chat) if with_tokenizer else None
    if family == "native":
        model = native(**NATIVE)
        names = dict(model.original_model.named_parameters())
        weights = {name.replace("._original_component", ""): weight.data for name, weight in names.items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(NATIVE | {"model_type": "native"}))
        if words is not None:
            words.save_pretrained(folder)
    else:
        save(CONFIGS[family](), folder, words=words)
    return folder


@cache
def loaded(family: str, **options: Any) -> Any:
    """The model that `load_model` makes of `directory(family, **options)`: not to be changed."""
    return load_model(directory(family, **options))


def copy_of(family: str, folder: Path, **options: Any) -> Path:
    """A test's own copy of a directory."""
    shutil.copytree(directory(family, **options), folder)
    return folder


def with_weights(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Path:
    """The directory with its weights changed."""
    file = folder / "model.safetensors"
    # Copied, because a loaded file is mapped into memory while it is written anew.
    weights = {name: weight.clone() for name, weight in load_file(file).items()}
    save_file(dict(change(weights)), file, metadata={"format": "pt"})
    return folder


def with_config(folder: Path, **entries: Any) -> Path:
    """The directory with entries of its config changed."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return folder
