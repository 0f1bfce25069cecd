"""Costs that grow with a model and its prompts, with and without what saves them: GPT-2-small shape, random weights.

    python tests/benchmarks/costs.py [--quick] [--json] [--only PART]

The peer of each line is our own slow way to the same numbers: all weights hashed, everything checked anew, patterns
written down, activations recorded by hooks. --quick takes a model of 4 layers of width 256.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from side_by_side import Line, arguments, compare, gpt2, pairs, show_cases

import workbench as wb
from workbench.engine import circuit_check, plain_run, select
from workbench.engine.fast import families
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.staircase import run_base
from workbench.models import padding
from workbench.models.fingerprint import model_fingerprint
from workbench.prompts.prompts import Prompts
from workbench.sites import Key

CHANGED = (2, 4, 10)


def hashing(model: Any) -> Iterator[Line]:
    """A model whose weights were hashed before."""
    same = torch.zeros(())

    def full() -> torch.Tensor:
        assert model_fingerprint(model, full=True) == model_fingerprint(model)
        return same

    def known() -> torch.Tensor:
        model_fingerprint(model)
        return same

    yield compare("fingerprint of a known model", "all weights hashed", 5, known, full)


@contextmanager
def new_process() -> Iterator[None]:
    """Nothing is known of any model but what is on the disk."""
    with (
        patch.object(circuit_check, "_found_right", set()),
        patch.object(select, "_verdicts", type(select._verdicts)()),
        patch.object(padding, "_needs_mask", type(padding._needs_mask)()),
    ):
        yield


def first_call(model: Any) -> Iterator[Line]:
    """Evaluating a circuit for the first time in a process, self-checks included."""
    given, circuit = pairs(model, CHANGED), wb.Circuit.full(model)

    def called() -> torch.Tensor:
        with new_process():
            made = wb.evaluate(circuit, model, given, value=wb.zero(), checks=(), progress=False)
        return torch.from_numpy(made["metric"].values)

    def forgotten() -> torch.Tensor:
        with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, WORKBENCH_CACHE=empty):
            return called()

    peer = "the first call without verdicts on disk"
    yield compare("first call, its checks made by another process", peer, 2, called, forgotten)


def attention(model: Any) -> Iterator[Line]:
    """One prompt as long as the model takes."""
    length = model.cfg.n_ctx
    tokens = torch.randint(model.cfg.d_vocab, (1, length), generator=torch.Generator().manual_seed(0))
    decoder = families.read(model, length)
    layers, prompts = range(decoder.shape.n_layers), Prompts.of(tokens.tolist())
    shape, dtype = decoder.shape, decoder.dtype
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, length, n, shape.d_head, generator=generator, dtype=dtype)
               for n in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads))  # fmt: skip
    visible = torch.ones(1, length, length, dtype=torch.bool).tril()

    def heads() -> torch.Tensor:
        return torch.stack([decoder.attend(layer, q, k, v, None, visible) for layer in layers])

    def base() -> torch.Tensor:
        return run_base(decoder, prompts).kept["resid_pre", len(layers)]

    def written_down(run: Callable[[], torch.Tensor]) -> torch.Tensor:
        with patch.object(Decoder, "fuses", lambda *_: False):
            return run()

    with torch.no_grad():
        for case, run in (("attention", heads), ("base run", base)):
            yield compare(
                f"{case} of {length} tokens",
                "patterns written down",
                2 if run is heads else 0,
                run,
                lambda run=run: written_down(run),
            )


def captured(model: Any) -> Iterator[Line]:
    """The stores of both sides of 8 pairs, all usual kinds."""
    given = pairs(model, CHANGED)
    last: Key = ("resid_post", model.cfg.n_layers - 1)

    def ours() -> torch.Tensor:
        stores = wb.capture_pairs(model, given, progress=False)
        return torch.stack([store[last].padded() for store in stores])

    def hooked() -> torch.Tensor:
        with patch.object(plain_run, "fast_decoder", lambda *_: (None, "")):
            return ours()

    yield compare("capture of 8 pairs", "hooks", 1.5, ours, hooked)


def main() -> None:
    warnings.simplefilter("ignore")
    args = arguments(__doc__)
    small = {"n_layer": 4, "n_embd": 256, "n_head": 8, "vocab_size": 2000}
    model = gpt2(**small if args.quick else {})
    cases: dict[str, Callable[[], Sequence[Line]]] = {
        "fingerprint": lambda: list(hashing(model)),
        "first call": lambda: list(first_call(model)),
        "attention": lambda: list(attention(model)),
        "capture": lambda: list(captured(model)),
    }
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, WORKBENCH_CACHE=cache):
        for _ in show_cases(cases, args):
            pass


if __name__ == "__main__":
    main()
