"""The translators of a tuned lens, an affine map for each layer: started by least squares, trained by KL.

Read `trained`. Which rows are trained on is the caller's choice (`tuned_lens`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import ProbeError
from workbench.lenses.stream_rows import StreamRows
from workbench.lenses.unembedding import ReadOut
from workbench.models.load import model_device
from workbench.progress import progress_bar

RIDGE = 1e-4
"""Ridge of the least-squares maps, as a share of the mean square of the stream."""


@dataclass(frozen=True, eq=False)
class Translators:
    """An affine map for each layer into the last layer's basis."""

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]

    def __call__(self, streams: Float[Tensor, "layer row d_model"]) -> Float[Tensor, "layer row d_model"]:
        return torch.baddbmm(self.bias[:, None], streams.to(self.weight), self.weight)

    @classmethod
    def identity_like(cls, maps: "Translators") -> "Translators":
        """The maps of the plain logit lens."""
        identity = torch.eye(maps.weight.shape[1]).to(maps.weight).expand_as(maps.weight)
        return cls(identity, torch.zeros_like(maps.bias))


def trained(
    rows: StreamRows, read_out: ReadOut, *, epochs: int, rate: float, batch: int, seed: int, progress: bool
) -> Translators:
    """Maps fitted by Adam from the least-squares maps, with a rate that falls linearly to zero."""
    start = _least_squares(rows)
    device = model_device(read_out.model)
    maps = Translators(start.weight.to(device).requires_grad_(), start.bias.to(device).requires_grad_())
    steps = epochs * rows.n_batches(batch)
    adam = torch.optim.Adam([maps.weight, maps.bias], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: max(0.0, 1 - step / steps))
    with torch.enable_grad(), progress_bar(steps, "tuned lens", "step", shown=progress) as bar:
        for epoch in range(epochs):
            for block in rows.blocks(shuffle=True, seed=seed + epoch):
                for _, streams, target in block.batches(batch):
                    # Layers share no weights, so that their losses may be added.
                    loss = divergences(read_out, streams, target, maps).mean(1).sum()
                    # Not `loss.backward()`, which would leave gradients on the model's weights too.
                    maps.weight.grad, maps.bias.grad = torch.autograd.grad(loss, (maps.weight, maps.bias))
                    adam.step()
                    schedule.step()
                    bar.update()
    result = Translators(maps.weight.detach(), maps.bias.detach())
    if not bool(torch.isfinite(result.weight).all()) or not bool(torch.isfinite(result.bias).all()):
        raise ProbeError(f"fit_tuned_lens: training diverged at rate={rate}. Give a smaller one.")
    return result


@torch.no_grad()
def _least_squares(rows: StreamRows) -> Translators:
    """Per layer the ridge map to the last layer's stream, by one pass of sums in float64."""
    size, n_layers = rows.final.data.row_shape[0], len(rows.views)
    # Only sums of x x' and x y' are kept, however many rows there are; x has a 1 appended for the bias.
    squares = torch.zeros(n_layers, size + 1, size + 1, dtype=torch.float64)
    products = torch.zeros(n_layers, size + 1, size, dtype=torch.float64)
    for block in rows.blocks(shuffle=False):
        target = block.target.cpu().double()
        for layer, stream in enumerate(block.streams):
            x = torch.cat([stream.cpu().double(), target.new_ones(len(target), 1)], 1)
            squares[layer] += x.T @ x
            products[layer] += x.T @ target
    ridge = RIDGE * squares.diagonal(dim1=1, dim2=2)[:, :size].mean(1) + 1e-12
    penalty = torch.eye(size + 1, dtype=torch.float64)
    # No penalty on the bias, which only moves the mean.
    penalty[size, size] = 0
    penalties = ridge[:, None, None] * penalty
    # Towards the identity, which is the logit lens, where rows are too few to say.
    prior = torch.eye(size + 1, size, dtype=torch.float64)
    # The last term keeps the system solvable where the bias has no rows of its own.
    system = squares + penalties + 1e-9 * torch.eye(size + 1, dtype=torch.float64)
    solution = torch.linalg.solve(system, products + penalties @ prior)
    return Translators(solution[:, :size].float().contiguous(), solution[:, size].float().contiguous())


def divergences(
    read_out: ReadOut, streams: Tensor, target: Tensor, maps: Translators
) -> Float[Tensor, "layer row"]:
    """KL (nats) from the last stream's distribution to that of every layer's translated stream."""
    with torch.no_grad():
        theirs = read_out(target).float().log_softmax(-1)
    translated = maps(streams)
    # The read-out takes rows, so the layers are laid in one axis with them and taken apart again.
    ours = read_out(translated.flatten(0, 1)).float().log_softmax(-1).view(*translated.shape[:2], -1)
    return (theirs.exp() * (theirs - ours)).sum(-1)
