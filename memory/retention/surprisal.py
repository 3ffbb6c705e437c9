"""What a token is worth by the logits that came before it: its surprisal, in nats.

SirLLM, arXiv 2405.12528, equation 1: -ln P(token | what was cached before it). The public code
scores each token by how surprising its predecessor would be if it came again; that is kept as
`previous`, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy as copy_of

import torch
from torch import Tensor

from .base import Scores
from .tokens import Tokens

ROWS = 64
"""Tokens whose logits are looked at together: bounds memory."""


class Surprisal:
    """Scores tokens as they are observed, and carries the last logits from chunk to chunk.

    Attributes:
        last: float32 [B, V], logits at the last token; None before the first.
    """

    def __init__(self, kind: Scores | None) -> None:
        self.kind = kind
        self.last: Tensor | None = None
        self.last_repeat: Tensor | None = None

    def observe(self, tokens: Tokens, ids: Tensor, logits: Tensor) -> None:
        """Score the last T tokens: ids [B, T], logits [B, T, V]."""
        t = ids.shape[1]
        uniform = math.log(logits.shape[-1])
        if self.kind == "surprisal":
            expected = logits[:, :-1]
            scores = surprisal(expected, ids[:, 1:])
            first = ids[:, :1]
            head = (
                torch.full(first.shape, uniform)
                if self.last is None
                else surprisal(self.last[:, None], first)
            )
            scores = torch.cat([head, scores], dim=1)
        else:
            repeat = surprisal(logits, ids)
            before = self.last_repeat if self.last_repeat is not None else repeat[:, :1]
            scores = torch.cat([before, repeat[:, :-1]], dim=1)
            self.last_repeat = repeat[:, -1:]
        self.last = logits[:, -1].float()
        at = tokens.position[:, -t:]
        scores = torch.where(at == 0, uniform, scores)  # nothing was known before it
        tokens.score[:, -t:] = scores

    def state(self) -> dict[str, Tensor]:
        """What is carried, by name."""
        carried = {"last": self.last, "last_repeat": self.last_repeat}
        return {name: tensor for name, tensor in carried.items() if tensor is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Carry what `state` was taken from."""
        self.last, self.last_repeat = state.get("last"), state.get("last_repeat")

    def rows_of(self, rows: Tensor) -> None:
        """Carry on for these rows, in this order."""
        if self.last is not None:
            self.last = self.last.index_select(0, rows.to(self.last.device))
        if self.last_repeat is not None:
            self.last_repeat = self.last_repeat.index_select(0, rows.cpu())

    def forget(self) -> None:
        """What was carried no longer comes before what is next."""
        self.last = self.last_repeat = None

    def copy(self) -> Surprisal:
        """One that goes on by itself; what is carried is replaced, never changed."""
        return copy_of(self)


def surprisal(logits: Tensor, ids: Tensor) -> Tensor:
    """-ln P in nats of ids [B, T] under logits [B, T, V], on the CPU."""
    parts = [torch.empty(ids.shape[0], 0)]
    for start in range(0, ids.shape[1], ROWS):
        some = slice(start, start + ROWS)
        part = logits[:, some].float()
        picked = part.gather(-1, ids[:, some, None].to(part.device))[..., 0]
        parts.append((part.logsumexp(-1) - picked).cpu())
    return torch.cat(parts, dim=1)
