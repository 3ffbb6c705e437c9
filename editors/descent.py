"""Adam, as every method that learns by steps runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from threading import Event
from typing import TYPE_CHECKING

import torch

from ..errors import Cancelled, EditFailed
from .base import Progress

if TYPE_CHECKING:
    from torch import Tensor


def descend(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    rate: float,
    until: float,
    progress: Progress,
    cancel: Event,
    project: Callable[[], None] = lambda: None,
) -> tuple[float, ...]:
    """Minimise `loss` in place; returns it at each step, up to the one that fell below `until`.

    Args:
        project: brings the parameters back to where they may be, after each step.

    Raises:
        Cancelled: `cancel` was set.
        EditFailed: the loss is no number.
    """
    optimiser = torch.optim.Adam(list(parameters), lr=rate)
    curve: list[float] = []
    with torch.enable_grad():
        for step in range(steps):
            progress(step, steps)
            unless_cancelled(cancel)
            now = loss()
            curve.append(float(now.detach()))
            if not math.isfinite(curve[-1]):
                raise EditFailed(
                    f"the loss became {curve[-1]} at step {step + 1} with rate={rate}; choose a"
                    " lower rate"
                )
            if curve[-1] < until:
                break
            optimiser.zero_grad()
            now.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                project()
    progress(steps, steps)
    return tuple(curve)


def unless_cancelled(
    cancel: Event, kept: str = "the edit was cancelled; nothing of it was kept"
) -> None:
    """Go on.

    Args:
        kept: what is said otherwise: what becomes of what was learnt.

    Raises:
        Cancelled: `cancel` was set.
    """
    if cancel.is_set():
        raise Cancelled(kept)
