"""Faster matrix products for training, where the device has them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def quick_products(device: torch.device) -> AbstractContextManager[object]:
    """Inside the block products of float32 matrices are made in bfloat16, which halves the time of
    training. Only where the hardware multiplies bfloat16: elsewhere it would take longer."""
    able = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=able)
