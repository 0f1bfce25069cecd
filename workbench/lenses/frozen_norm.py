"""`FrozenNorm`: a norm with its scale frozen is a linear map, so that directions can be pulled back through
it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.engine.bridge import Norm
from workbench.errors import ModelError

# A norm counts as centring if its output for a constant vector is less than this share of its output for
# another vector. 1e-3 lies between the 0 of a centring norm (the mean of ones is exact) and the share near 1
# of an RMS norm.
CENTRED = 1e-3
# How far a norm may be from the form that is assumed, as a share of its largest number: half precision rounds
# that much.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.05


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A layer norm or RMS norm with its scale frozen: v -> scale * gain * (v, centred or not), plus a shift.

    Attributes:
        norm: the norm itself.
        gain, shift: [d_model].
        centred: whether the mean is subtracted.
    """

    norm: Norm
    gain: Float[Tensor, "d_model"]
    shift: Float[Tensor, "d_model"]
    centred: bool

    @classmethod
    def of(cls, norm: Norm, size: int, like: Tensor) -> "FrozenNorm":
        """The form of a norm, read off its outputs for three vectors: any layer norm or RMS norm fits.

        Args:
            size: d_model.
            like: a tensor of the model's precision and device.
        """
        zero = like.new_zeros(size)
        signs = torch.ones(size, dtype=torch.float64)
        signs[::2] = -1
        # No entry is 0, and the mean is: a norm that centres leaves it as it is.
        probe = signs - signs.mean()
        with torch.no_grad():
            shift, of_ones, of_probe = (
                norm(vector.to(like)[None, None])[0, 0].double().cpu() for vector in (zero, zero + 1, probe)
            )
        centred = bool((of_ones - shift).abs().max() < CENTRED * (of_probe - shift).abs().max())
        return cls(norm, (of_probe - shift) / probe, shift, centred)

    def bare(self, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The norm without its scale and shift."""
        stream = stream.double().cpu()
        if self.centred:
            stream = stream - stream.mean(-1, keepdim=True)
        return self.gain * stream

    def scale(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row"]:
        """What the norm multiplies each vector by.

        Raises:
            ModelError: the norm does not have this form.
        """
        with torch.no_grad():
            normed = self.norm(stream[None])[0].double().cpu() - self.shift
        bare = self.bare(stream)
        # The best factor; it is the right one if the norm is a multiple of the bare vector.
        scale = (normed * bare).sum(-1) / (bare**2).sum(-1).clamp(min=1e-300)
        half = stream.dtype in (torch.bfloat16, torch.float16)
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        if float((bare * scale[:, None] - normed).abs().max()) > tolerance * float(normed.abs().max()):
            raise ModelError(
                "A norm of this model is neither a layer norm nor an RMS norm, so its scale cannot be frozen "
                "for direct attribution. effects(...) works on it."
            )
        return scale

    def pull_back(
        self, read: Float[Tensor, "row d_model"], scale: Float[Tensor, "row"]
    ) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, "row"]]:
        """What a reader of the norm's output reads of its input [row, d_model], and of its shift [row]."""
        back = read * self.gain
        if self.centred:
            back = back - back.mean(-1, keepdim=True)
        return back * scale[:, None], read @ self.shift
