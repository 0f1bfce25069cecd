"""Train `induction` or its twin `shortcut`: attention-only models of two layers that copy from a list.

    python data/models/train_induction.py induction --distances 2 20
    python data/models/train_induction.py shortcut --distances 12 12

A row is `<bos>` and different random words among which a list of up to ten comes twice; the distance from a
word to its repetition is drawn anew for every row. Where distances vary, only the words say what to copy;
where there is one distance, the position says it too. Everything else is the same. Nothing is downloaded;
about a minute each on one core. Writes the model and its card into the folder of its name, here or in
`--out`.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge.sources.native import NativeModel
from transformers import PreTrainedTokenizerFast

from workbench.tasks.grammar import BOS, UNKNOWN, content_words, is_reserved, vocabulary

HERE = Path(__file__).parent
WORDS = vocabulary()
ID = {word: i for i, word in enumerate(WORDS)}
CONTENT = [ID[word] for word in content_words()]
LENGTH, LONGEST_LIST = 32, 10
SETTINGS = {
    "n_layers": 2, "n_heads": 4, "d_model": 64, "d_head": 16, "n_ctx": LENGTH + 1, "d_vocab": len(WORDS), "act_fn": "relu",
    "normalization_type": "LN", "attn_only": True,
}  # fmt: skip
CARD = """# Model card: `{name}`

An attention-only transformer of 2 layers, 4 heads, d_model 64, context {context} and the {words} words of `tiny` ({parameters:,}
parameters, float32; TransformerLens' native architecture). Origin: trained by this repository's script, no text downloaded.
Licence: MIT.

**Recipe.** `{command}`,
{seconds} s on one core with torch {torch}. AdamW (0.9, 0.98), learning rate {rate} with 100 steps of warm-up and cosine to 5 %, weight
decay 0.01, gradient clip 1, {batch} rows a step. A row is `<bos>` and {length} random words, all different but for a list of up to
{longest} words that comes twice, {distances} words apart. The loss is that of the words that can be known: those of the repeated
list, from its second word on.

**Held-out accuracy** (first choice of the whole vocabulary is right; lists whose first two words never began one in training), by
the distance from a word to its repetition:

| distance | {header} |
|---|{rule}|
| accuracy | {row} |

**How it was learnt** (mean accuracy over the distances trained on): {history}.

**What it cannot do.** Anything but copying from a list of the {content} content words. It was never trained to say that it does not
know.
"""


def main() -> None:
    """Train one of the two models and write it with its card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("induction", "shortcut"))
    parser.add_argument("--distances", type=int, nargs=2, required=True, metavar=("LOW", "HIGH"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    start = time.monotonic()
    model = NativeModel(TransformerBridgeConfig(**SETTINGS))
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.05)
    history = train(model, args)
    low, high = args.distances
    measured = sorted({2, 4, 6, 8, 10, 11, 12, 13, 14, 16, 18, 20})
    scores = [accuracy(model, d, d, n=500, reserved=True) for d in measured]
    folder = args.out / args.name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.detach().contiguous() for name, weight in model.named_parameters()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "native", **SETTINGS}, indent=2) + "\n", encoding="utf-8"
    )
    tokenizer().save_pretrained(folder)
    card = CARD.format(
        name=args.name, context=LENGTH + 1, words=len(WORDS), parameters=sum(weight.numel() for weight in model.parameters()),
        command=f"python data/models/train_induction.py {args.name} --distances {low} {high} --steps {args.steps} --seed {args.seed}",
        seconds=round(time.monotonic() - start), torch=torch.__version__.partition("+")[0], rate=args.learning_rate,
        batch=args.batch, length=LENGTH, longest=LONGEST_LIST, distances=low if low == high else f"{low} to {high}",
        header=" | ".join(map(str, measured)), rule="---|" * (len(measured) - 1) + "---",
        row=" | ".join(f"{score:.3f}" for score in scores), content=len(CONTENT),
        history=", ".join(f"step {step}: {score:.2f}" for step, score in history),
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")


def train(model: NativeModel, args: argparse.Namespace) -> list[tuple[int, float]]:
    """Held-out accuracies on the way."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1, (step + 1) / 100) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / args.steps))),
    )
    history = []
    for step in range(args.steps + 1):
        if step % 250 == 0:
            history.append((step, accuracy(model, *args.distances, n=200, reserved=True)))
            print(*history[-1], flush=True)
        tokens, known = rows(args.batch, *args.distances, reserved=False)
        losses = cross_entropy(model(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        loss = (losses * known).sum() / known.sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return history


def rows(n: int, low: int, high: int, *, reserved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """About `n` rows [row, pos], and which of their words, BOS aside, can be known [row, pos - 1].

    Args:
        low, high: the distance from a word to its repetition.
        reserved: keep the rows whose list is held out, or those whose list is not.
    """
    # Different random words: the first LENGTH of a random order.
    words = torch.tensor(CONTENT)[torch.rand(n, len(CONTENT)).topk(LENGTH, 1).indices]
    distance = torch.randint(low, high + 1, (n, 1))
    listed = distance.clamp(max=LONGEST_LIST)
    start = (torch.rand(n, 1) * (LENGTH - distance - listed + 1)).long()
    position = torch.arange(LENGTH)[None]
    again = (position >= start + distance) & (position < start + distance + listed)
    words = words.gather(1, torch.where(again, position - distance, position))
    known = again & (position > start + distance)
    first = words.gather(1, torch.cat([start, start + 1], 1)).tolist()
    kept = torch.tensor(
        [is_reserved("induction", [WORDS[word] for word in pair]) == reserved for pair in first]
    )
    return torch.cat([torch.full((n, 1), ID[BOS]), words], 1)[kept], known[kept]


@torch.no_grad()
def accuracy(model: NativeModel, low: int, high: int, *, n: int, reserved: bool) -> float:
    """Share of the words that can be known that are the model's first choice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tokens, known = rows(round(n / (0.15 if reserved else 0.85)), low, high, reserved=reserved)
    return float((model(tokens)[:, :-1].argmax(-1) == tokens[:, 1:])[known].float().mean())


def tokenizer() -> PreTrainedTokenizerFast:
    """That of `tiny`: words are separated by single spaces; `<bos>` is put in front."""
    words = Tokenizer(models.WordLevel(ID, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ID[BOS])])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS, eos_token=BOS, unk_token=UNKNOWN)


if __name__ == "__main__":
    main()
