"""`CheckedLoader`: what TransformerLens loads a Hugging Face model through, so that nothing goes by unseen.

It stands where TransformerLens expects a class of transformers. Weights that do not fit are refused
(`weights.py`), and the finished bridge is compared with the model as transformers runs it. Knows nothing of
where models lie.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from workbench.errors import ModelError
from workbench.models.weights import load_weights

# How far apart the logits of a bridge and of the model that it wraps may be, as a share of the largest: sums
# in another order, and in 16 bits the rounding of each step.
_AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.1}

# All other classes have an encoder besides, for another text, images or sound.
_TEXT_CLASSES = ("AutoModelForCausalLM", "AutoModelForMaskedLM")

# Entries of a config that say nothing of what a model computes.
_BOOKKEEPING = frozenset(
    "_name_or_path dtype model_type output_attentions transformers_version use_cache".split()
)


class CheckedLoader:
    """Takes the place of the Hugging Face class when TransformerLens loads a model, and checks what it loads.

    Args:
        class_of: config → its architecture, and the class of transformers that loads it.
        device: where the model runs.

    Attributes:
        model: the Hugging Face model, once its weights are loaded.
    """

    def __init__(self, class_of: Callable[[Any], tuple[str, Any]], device: torch.device) -> None:
        self.class_of, self.device = class_of, device
        self.model: Any = None
        # [example, pos] and [example, pos, vocab], of the run before TransformerLens changes the model.
        self._tokens = self._logits = torch.zeros(0)

    def from_pretrained(self, source: str, **options: Any) -> nn.Module:
        """What TransformerLens asks of the class: the model of a directory or a Hub name."""
        config = options["config"]
        architecture, kind = self.class_of(config)
        check_one_stack(config, architecture, source)
        # TransformerLens 4.3 installs torchvision while it loads a model that reads images.
        if kind.__name__ not in _TEXT_CLASSES:
            raise ModelError(
                f"{source!r} is a {architecture}: models that read images or sound are not supported. Where "
                "it has a decoder for text alone, load that with transformers, save_pretrained it, and load "
                "the directory."
            )
        self.model = load_weights(kind, source, options).to(self.device)
        self._keep_logits()
        return self.model

    def _keep_logits(self) -> None:
        """Keep the logits of a few tokens as transformers computes them."""
        # Before TransformerLens puts its own modules into the model, after which there is no such run.
        text_config = self.model.config.get_text_config()
        n_tokens = min(8, getattr(text_config, "max_position_embeddings", None) or 8)
        # Not from 0 on: the first ids are often padding.
        self._tokens = (3 + torch.arange(n_tokens, device=self.device)[None]) % text_config.vocab_size
        with torch.no_grad():
            self._logits = self.model(input_ids=self._tokens).logits.float()

    def check_logits(self, bridge: Any, source: str) -> None:
        """Raise `ModelError` where the bridge computes other logits than the model that it wraps."""
        # Where numbers overflow there is nothing to compare: runs refuse such logits.
        if not bool(self._logits.isfinite().all()):
            return
        with torch.no_grad():
            logits = bridge.eval()(self._tokens).float()
        scale = max(float(self._logits.abs().max()), 1e-30)
        error = float((logits - self._logits).abs().max()) / scale
        # Written so that an error of NaN is refused too.
        if not error <= _AGREEMENT[next(self.model.parameters()).dtype]:
            raise ModelError(
                f"TransformerLens computes other logits than transformers for {source!r}: they differ by "
                f"{error:.1e} of the largest, so nothing measured in it would be right. {self.advice()}"
            )

    def stage(self, source: str) -> str:
        """How far loading came before an error."""
        if self.model is None:
            return f"The model {source!r} cannot be loaded"
        return (
            f"The weights of {source!r} fit, but its tokenizer cannot be loaded, or TransformerLens cannot "
            f"wrap a {type(self.model).__name__} of these options"
        )

    def advice(self) -> str:
        """What to look at after an error."""
        if self.model is None:
            return (
                "A local model is a Hugging Face directory with config.json, *.safetensors and, for texts, "
                "tokenizer.json."
            )
        config, unusual = self.model.config, []
        usual = type(config)().to_dict()
        for name, setting in sorted(config.to_dict().items()):
            # Sizes differ in every model; switches and words say which variant of the architecture it is.
            if isinstance(setting, bool | str) and name not in _BOOKKEEPING and setting != usual.get(name):
                unusual.append(f"{name}={setting!r}")
        return f"Options of its config that are not the default: {', '.join(unusual) or 'none'}."


def check_one_stack(config: Any, architecture: str, name: str) -> None:
    """Raise `ModelError` for an encoder-decoder.

    Its prompts would go to the encoder, and the logits would be the decoder's, of tokens that nobody gave.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name!r} is an encoder-decoder ({architecture}), which has two stacks of blocks. "
            "Only models of one stack can be loaded: decoders such as GPT-2, encoders such as BERT."
        )
