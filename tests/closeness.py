"""Whether two results agree, on any processor: measured against the largest magnitude of what is compared.

Kernels differ in the order of their sums, so the last digits of a number depend on the processor. How far apart two
right results can be grows with the numbers that were summed, not with the single result, which may be near 0 by
cancellation. Absolute tolerances fail on one processor and let errors through elsewhere.
"""

from typing import Any

import numpy as np
import torch
import xarray as xr

# About a hundred rounding errors of each precision (float32 rounds at 6e-8, float64 at 1e-16, float16 at 5e-4), which sums
# over a few hundred terms in another order reach. A wrong term in a sum shows at 1e-3 and above.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-5, np.dtype(np.float16): 1e-2}


def as_array(values: Any) -> np.ndarray:
    """Values of any kind as an array; bfloat16 becomes float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, xr.DataArray):
        return values.values
    return np.asarray(values)


def distance(ours: Any, theirs: Any, *, scale: float | None = None) -> float:
    """The largest difference as a share of the largest magnitude of either; inf where only one of them is NaN.

    Args:
        scale: the magnitude to compare with instead, where the results are differences of larger numbers
            (effects are differences of metrics: their scale is the metric's).
    """
    ours, theirs = as_array(ours).astype(np.float64), as_array(theirs).astype(np.float64)
    assert ours.shape == theirs.shape, f"shapes {ours.shape} and {theirs.shape}"
    if (np.isnan(ours) != np.isnan(theirs)).any():
        return float("inf")
    same = (ours == theirs) | np.isnan(ours)
    if same.all():
        return 0.0
    if scale is None:
        finite = np.concatenate([ours.ravel(), theirs.ravel()])
        scale = float(np.abs(finite[np.isfinite(finite)]).max(initial=0.0))
    gap = np.abs(np.where(same, 0, ours - theirs)).max()
    return float(gap / scale) if scale else float("inf")


def close(ours: Any, theirs: Any, *, tolerance: float | None = None, scale: float | None = None) -> bool:
    """Whether two results agree to a share of their largest magnitude: 1e-5 in float32, 1e-10 in float64.

    The coarser of the two precisions counts. Python numbers count as float64: give `tolerance` where they come from
    float32. Use `==` where an identity is exact.

    >>> close([1000.0, 0.0], [1000.0, 1e-8])
    True
    >>> close([1.0, 0.0], [1.0, 1e-8])
    False
    """
    if tolerance is None:
        kinds = [as_array(one).dtype for one in (ours, theirs)]
        tolerance = max(TOLERANCE.get(kind, 1e-10) for kind in kinds)
    return distance(ours, theirs, scale=scale) <= tolerance
