"""Metrics that misbehave, for the sweeps to survive."""

import os

import torch

import workbench as wb


def _read_at_end(function):
    return wb.metric(function, positions="END")


@_read_at_end
def fair(logits):
    """[example]: the largest logit at the last position."""
    return logits.max(-1).values


@_read_at_end
def raises(logits):
    raise ValueError("this metric does not like <b>anything</b>")


@_read_at_end
def nothing(logits):
    """Not a number, always."""
    return torch.full((len(logits),), torch.nan)


@_read_at_end
def wrong_shape(logits):
    return logits.sum()


@_read_at_end
def too_big(logits):
    raise torch.OutOfMemoryError("DefaultCPUAllocator: not enough memory: you tried to allocate 10 GB")


@_read_at_end
def kills(logits):
    """Ends the process that runs it, as the kernel does when memory runs out."""
    os.kill(os.getpid(), 9)
