"""`check_circuits`: whether circuits of a model are run right, tried at its first circuit or edge call.

Families differ in what a block reads and in what it writes, and a mistake there is a wrong number without a
word. On one short prompt the full circuit must be the model, and two random circuits must be what the model
itself makes of them (`circuit_by_rows`). This module runs circuits and knows no metric.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.fast.circuits import CircuitWalk
from workbench.engine.fast.decoder import Decoder
from workbench.engine.first_not_finite import located
from workbench.engine.hooked.block import ALTERNATIVE, check_parts_add_up
from workbench.engine.hooked.circuits import circuit_logits
from workbench.engine.hooked.forward import forward
from workbench.engine.hooked.shared_rows import circuit_by_rows
from workbench.engine.precomputed import Precomputed
from workbench.engine.select import fast_decoder
from workbench.errors import EditError, ModelError, NotFinite, SiteError
from workbench.finite import is_finite
from workbench.models.fingerprint import model_fingerprint
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.models.verdicts import is_right, keep_right
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape, Site

# What was found right in this process: fingerprint, precision, device and engine. By fingerprint, so that a
# model that is loaded again is known, and one whose weights were changed is not.
_found_right: set[tuple[str, torch.dtype, torch.device, bool]] = set()
# Differences allowed, as shares of the largest logit. Many norms work in float32 whatever the model's
# precision; in half precision a stream that is rebuilt from its parts is rounded once more at each of them.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.1
# Tokens of the prompt, rows of a random circuit, and the share of the writers that each row cuts.
_N_TOKENS, _N_ROWS, _SHARE = 6, 6, 0.3
# Logits below this share of the stream are small sums of large parts, so the stream's rounding is theirs.
_ROUNDING = 0.01


def check_circuits(model: Model, *, fast: bool) -> None:
    """Raise where circuits of a model are not run right.

    Args:
        fast: whether the fast engine runs them.

    Raises:
        ModelError: the model's blocks are not what is known of such blocks.
        NotFinite: its logits are not numbers.
    """
    weight = next(iter(model.parameters()))
    key = (model_fingerprint(model), weight.dtype, weight.device, fast)
    check = f"circuits on {'the fast engine' if fast else 'hooks'}"
    if key in _found_right or is_right(model, check):
        _found_right.add(key)
        return
    decoder = None
    if fast:
        # Of its own, since the one in use may know no more positions than its prompts have.
        decoder, _ = fast_decoder(model, min(_N_TOKENS, Shape.of(model).n_ctx))
    if decoder is None:
        check_parts_add_up(model)
    architecture = type(model.original_model).__name__
    try:
        difference, scale = _Check.of(model).largest_difference(decoder)
    except torch.OutOfMemoryError:  # a `RuntimeError` that says nothing about the model
        raise
    # What bridges of unknown layout fail with; a `ModelError` keeps its own message.
    except (SiteError, EditError, RuntimeError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ModelError(
            f"Edges and circuits of {model_name(model)} ({architecture}) are not supported: a first run of "
            f"them failed ({type(error).__name__}: {error}); {ALTERNATIVE}"
        ) from error
    tolerance = _HALF_TOLERANCE if weight.dtype in (torch.bfloat16, torch.float16) else _TOLERANCE
    if not difference <= tolerance * scale:
        raise ModelError(
            f"Edges and circuits of {model_name(model)} ({architecture}) are not supported: what its blocks "
            f"read is not what is known of such blocks. Random circuits differ from the model's own run by "
            f"{difference:.2g} where logits are {scale:.3g}; {ALTERNATIVE}"
        )
    _found_right.add(key)
    keep_right(model, check)


@dataclass(frozen=True, eq=False)
class _Check:
    """A prompt of one model with the activations of another prompt, its counterfactual.

    Attributes:
        patched: (kind, layer) of every writer → its activation on the other prompt.
    """

    model: Model
    graph: Graph
    prompt: Prompts
    patched: dict[Key, Tensor]

    @classmethod
    def of(cls, model: Model) -> "_Check":
        """Two random prompts."""
        shape, generator = Shape.of(model), torch.Generator().manual_seed(0)
        length = min(_N_TOKENS, shape.n_ctx)
        rows = torch.randint(shape.d_vocab, (2, length), generator=generator)
        keys: list[Key] = [("resid_pre", 0)]
        for layer in range(shape.n_layers):
            keys.append(("z", layer))
            if not shape.attn_only:
                keys.append(("mlp_out", layer))
        patched = forward(model, rows[1:], record=keys).recorded
        return cls(model, Graph.of(model), Prompts.of(rows[:1].tolist()), dict(patched))

    @torch.no_grad()
    def largest_difference(self, decoder: Decoder | None) -> tuple[float, float]:
        """The largest difference between circuit runs and the model's own, and the scale to compare it with.

        Args:
            decoder: of the fast engine; None: hooks run the circuits.
        """
        last = ("resid_post", self.graph.shape.n_layers - 1)
        run = forward(self.model, self.prompt, record=[last])
        plain = run.logits[0]
        if not is_finite(plain):
            with located(self.model, self.prompt):
                raise NotFinite(
                    f"The logits of {model_name(self.model)} are not finite on a prompt of {len(plain)} random "
                    "tokens."
                )
        circuits, expected = [self.graph.exists], [plain]
        for seed in (0, 1):
            cut, row_of = self._random_cuts(seed)
            expected.append(
                circuit_by_rows(
                    self.model, self.graph, self.prompt, cut=cut, row_of=row_of, patched=self.patched
                )
            )
            edges = self.graph.exists & ~cut[row_of].T.numpy()
            # Dead ends are pruned here and not there, which must make no difference: nobody reads a node
            # without outputs, and a node without inputs computes its patched value.
            circuits.append(self.graph.prune(edges))
        logits = self._logits(decoder, torch.from_numpy(np.stack(circuits)).float())
        differences = [float((ours - its).abs().max()) for ours, its in zip(logits, expected, strict=True)]
        # NaN is worse than any number.
        worst = float("nan") if any(np.isnan(differences)) else max(differences)
        # On random tokens a planted model may have logits next to nothing.
        smallest_scale = _ROUNDING * float(run.recorded[last].abs().max())
        return worst, max(float(plain.abs().max()), smallest_scale)

    def _random_cuts(self, seed: int) -> tuple[Tensor, Tensor]:
        """A random circuit: which writers each row cuts [row, writer], the row of each reader [reader]."""
        shape, rng = self.graph.shape, np.random.default_rng(seed)
        cut = rng.random((_N_ROWS, len(self.graph.writers))) < _SHARE
        for layer in range(shape.n_layers):
            # One head of each layer is read by nobody, so that there are dead ends.
            cut[:, self.graph.writer_index[f"a{layer}.{rng.integers(shape.n_heads)}"]] = True
        row_of = rng.integers(_N_ROWS, size=len(self.graph.readers))
        return torch.from_numpy(cut), torch.from_numpy(row_of)

    def _logits(self, decoder: Decoder | None, keep: Tensor) -> Tensor:
        """The logits [circuit, pos, vocab] of circuits [circuit, writer, reader], as an engine runs them."""
        tables = {Site(*key): value for key, value in self.patched.items()}
        bound = Precomputed(self.prompt, tables, start=0, first=torch.zeros(1, dtype=torch.long))
        if decoder is None:
            return circuit_logits(self.model, self.graph, keep, bound)[:, 0]
        walk = CircuitWalk(decoder, self.graph, bound, places=None)
        return decoder.unembed(decoder.final_norm(walk.streams(keep)))[:, 0]
