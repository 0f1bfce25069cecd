"""Train `tiny` from scratch on sentences of the grammar in `workbench.tasks.grammar`. Nothing is downloaded.

    python data/models/tiny/train.py --out runs/tiny --steps 8000 --seed 0 --also 1850 1900

writes `log.jsonl` (held-out score of every behaviour each 250 steps), a bfloat16 checkpoint at each of them,
and the final float32 model in Hugging Face format. `--also` adds steps to score and keep, `--stop-at 2000`
ends early. `keep.py` beside it copies the chosen ones here. About 35 minutes on two cores. Never run by
`make`: every circuit file in this repository depends on the weights as they are.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from workbench.tasks import agreement, binding, capitals, greater_than, induction, ioi, pronoun
from workbench.tasks.grammar import BOS, UNKNOWN, Lexicon, Sentence, is_reserved, vocabulary

BEHAVIOURS = {
    "ioi": (ioi, 1.0),
    "induction": (induction, 1.0),
    "greater_than": (greater_than, 1.2),
    "agreement": (agreement, 0.7),
    "pronoun": (pronoun, 0.6),
    "capitals": (capitals, 0.7),
    "binding": (binding, 1.8),
}
CONTEXT = 64
WORDS = vocabulary()
ID = {word: i for i, word in enumerate(WORDS)}


def main() -> None:
    """Train, with a log line and a checkpoint at each scored step, and write the final model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--also", type=int, nargs="*", default=[], help="further steps to score and keep")
    parser.add_argument(
        "--stop-at", type=int, help="end here; the learning rate follows --steps all the same"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(WORDS), n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=8,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, args.steps))
    probes = {name: held_out(name, n=250) for name in BEHAVIOURS}
    start = time.monotonic()
    with (args.out / "log.jsonl").open("w") as log:
        for step in range(args.steps + 1):
            if step % args.every == 0 or step in args.also:
                scores = {name: round(score(model, name, sentences), 3) for name, sentences in probes.items()}
                print(step, round(time.monotonic() - start), scores, flush=True)
                log.write(json.dumps({"step": step, **scores}) + "\n")
                log.flush()
                save_checkpoint(model, args.out / f"step-{step}.safetensors")
            if step in (args.steps, args.stop_at):
                break
            tokens = torch.tensor([row(rng) for _ in range(args.batch)])
            loss = model(tokens, labels=tokens).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    model.save_pretrained(args.out / "final")
    tokenizer().save_pretrained(args.out / "final")


def _rate(step: int, steps: int) -> float:
    """The learning rate as a share of its maximum: 200 steps of warm-up, then a cosine down to 5 %."""
    if step < 200:
        return (step + 1) / 200
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - 200) / (steps - 200)))


def row(rng: random.Random) -> list[int]:
    """One training row: `<bos>` and as many sentences as fit, the last one cut."""
    names = list(BEHAVIOURS)
    weights = [weight for _, weight in BEHAVIOURS.values()]
    ids = [ID[BOS]]
    while len(ids) < CONTEXT:
        name = rng.choices(names, weights)[0]
        sentence = BEHAVIOURS[name][0].training_sentence(rng, Lexicon())
        if not is_reserved(name, sentence.key):
            ids += [ID[word] for word in sentence.words + sentence.rest]
    return ids[:CONTEXT]


def held_out(name: str, n: int) -> list[Sentence]:
    """Clean sentences whose word combination is reserved, in every variant of the task."""
    rng = random.Random(name)
    task = BEHAVIOURS[name][0]
    sentences = []
    while len(sentences) < n:
        sentence = task.draw(rng, Lexicon(), rng.choice([v for v in task.VARIANTS if v != "abc"]))[0]
        if is_reserved(name, sentence.key):
            sentences.append(sentence)
    return sentences


@torch.no_grad()
def score(model: GPT2LMHeadModel, name: str, sentences: list[Sentence]) -> float:
    """Share of prompts whose first choice is right; for greater-than the mass on valid minus invalid years."""
    total = 0.0
    for sentence in sentences:
        logits = model(torch.tensor([[ID[BOS], *(ID[word] for word in sentence.words)]])).logits[0, -1]
        if name == "greater_than":
            mass = logits.softmax(-1)
            total += float(
                mass[[ID[w] for w in sentence.answers]].sum() - mass[[ID[w] for w in sentence.wrong]].sum()
            )
        else:
            total += WORDS[int(logits.argmax())] in sentence.answers
    return total / len(sentences)


def save_checkpoint(model: GPT2LMHeadModel, path: Path) -> None:
    """The weights in bfloat16, without the tied copy of the embedding."""
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}, path)


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level: words are separated by single spaces; `<bos>` is put in front."""
    words = Tokenizer(models.WordLevel(ID, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ID[BOS])])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS, eos_token=BOS, unk_token=UNKNOWN)


if __name__ == "__main__":
    main()
