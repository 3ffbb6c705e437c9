"""Which model a thing was made with: a hash of its shape and of a sample of its weights.

A sample, so that it takes milliseconds for a model of any size: two models that differ by training
differ nearly everywhere.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED = 64
"""Values of each parameter that are hashed, evenly spaced."""


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over name, shape, dtype and a sample of every parameter, and over how positions are
    encoded, which is no weight; as hexadecimal digits."""
    digest = hashlib.sha256(type(model).__name__.encode())
    positions = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None)
    digest.update(json.dumps(positions, sort_keys=True, default=str).encode())
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            flat = weight.detach().flatten()
            some = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED]
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(some.float().cpu().numpy().tobytes())
    return digest.hexdigest()
