"""Prompts and targets as one batch of ids, padded on the left, so that all targets end together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = tuple[Sequence[int], Sequence[int]]
"""Ids of a prompt, and of what is to follow it."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch.

    Args:
        ids, mask, positions: [N, T], as a model takes them.
        target: [N, T], True where a token is to be said.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    target: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device | str = "cpu") -> Rows:
        """Pad rows of ids to one length."""
        length = max(len(prompt) + len(target) for prompt, target in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask, target_mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for at, (prompt, target) in enumerate(rows):
            whole = [*prompt, *target]
            ids[at, length - len(whole) :] = torch.tensor(whole)
            mask[at, length - len(whole) :] = 1
            target_mask[at, length - len(target) :] = bool(target)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        moved = (each.to(device) for each in (ids, mask, positions, target_mask))
        return cls(*moved)

    @property
    def told(self) -> Tensor:
        """[N, T], 1.0 at the prompt's tokens but the first, whose state is the same in every text;
        at that one where a prompt has no other."""
        prompt = self.mask.bool() & ~self.target
        first = torch.zeros_like(prompt)
        first.scatter_(1, self.mask.argmax(1, keepdim=True), True)
        rest = prompt & ~first
        return torch.where(rest.any(1, keepdim=True), rest, prompt).float()

    @property
    def last(self) -> Tensor:
        """[N]: where each prompt ends."""
        return self.ids.shape[1] - 1 - self.target.sum(1)

    @property
    def behind(self) -> int:
        """Positions from the end at which a target token is predicted or stands."""
        return int(self.target.sum(1).max()) + 1

    def logits(self, model: PreTrainedModel) -> Tensor:
        """[N, K - 1, V] where the targets are predicted; see `labels`."""
        logits: Tensor = model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            use_cache=False,
            logits_to_keep=self.behind,
        ).logits
        return logits[:, :-1]

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """Ids [N, K - 1] that `logits` are to predict, and which of them count."""
        most = self.behind - 1
        return self.ids[:, -most:], self.target[:, -most:]

    def losses(self, model: PreTrainedModel) -> Tensor:
        """[N]: -ln P(target | prompt) in nats, the mean over a row's target tokens."""
        labels, counted = self.labels
        flat = self.logits(model).flatten(0, 1).float()
        each = cross_entropy(flat, labels.flatten(), reduction="none").view_as(labels)
        return (each * counted).sum(1) / counted.sum(1)
