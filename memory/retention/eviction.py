"""Which tokens stay: a policy's ranking, behind what is pinned and what is padding."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from .base import RetentionPolicy
from .tokens import Tokens


def choose(policy: RetentionPolicy, tokens: Tokens, turn: int, keep: int) -> tuple[Tensor, Tensor]:
    """Slots that stay and slots that go, [B, keep] and [B, S - keep], ascending.

    Raises:
        InputError: more are pinned than stay, or the policy ranks by what was never observed.
    """
    pinned = int(tokens.pinned.sum(dim=1).max())
    if pinned > keep:
        raise InputError(
            f"{pinned} tokens are pinned, and policy {policy.name!r} keeps {keep}; give it a larger"
            " budget, or pin fewer"
        )
    if policy.scores is not None:
        unknown = int((tokens.score.isnan() & tokens.real).sum())
        if unknown:
            raise InputError(
                f"{unknown} tokens were never observed, and policy {policy.name!r} ranks by their"
                " surprisal; read with `read`, or give logits to `observe`"
            )
    priority = policy.priority(tokens, turn).double()
    priority = priority.masked_fill(tokens.pinned, torch.inf).masked_fill(~tokens.real, -torch.inf)
    order = priority.argsort(dim=1, descending=True, stable=True)
    return order[:, :keep].sort(dim=1).values, order[:, keep:].sort(dim=1).values
