"""What holds in every test of the kernels: fresh memory is full of NaN, so that what a kernel
leaves unwritten cannot pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# its tests need a process in which Triton was imported to interpret: test_interpreter starts it
collect_ignore = [] if INTERPRETED else ["interpreted"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are soonest done by one thread: several wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nan_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and torch.empty_like give NaN, or the least integer."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **options: Any) -> Tensor:
            fresh = make(*args, **options)
            if fresh.dtype.is_floating_point and fresh.element_size() > 1:
                return fresh.fill_(torch.nan)
            if fresh.dtype in (torch.int8, torch.int32, torch.int64):
                return fresh.fill_(torch.iinfo(fresh.dtype).min)
            return fresh

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))
