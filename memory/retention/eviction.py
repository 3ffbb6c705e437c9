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
        InputError: more have to stay than can, or the policy ranks by what was never observed.
    """
    if policy.scores is not None:
        unknown = int((tokens.score.isnan() & tokens.real).sum())
        if unknown:
            raise InputError(
                f"{unknown} tokens were never observed, and policy {policy.name!r} ranks by their"
                " surprisal; read with `read`, or give logits to `observe`"
            )
    priority = policy.priority(tokens, turn).double().masked_fill(~tokens.real, -torch.inf)
    must = _must_stay(policy, tokens, priority)
    most = int(must.sum(dim=1).max())
    if most > keep:
        raise InputError(
            f"{int(tokens.pinned.sum(dim=1).max())} tokens are pinned, and with those that policy"
            f" {policy.name!r} always keeps they are {most}, of which {keep} can stay; give it a"
            " larger budget or a smaller window, or pin fewer"
        )
    order = priority.masked_fill(must, torch.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, :keep].sort(dim=1).values, order[:, keep:].sort(dim=1).values


def _must_stay(policy: RetentionPolicy, tokens: Tokens, priority: Tensor) -> Tensor:
    """bool [B, S], what is pinned, what the policy never lets go, and the window of a reach, which
    is what the next query sees at true distance."""
    must = tokens.pinned | priority.isposinf()
    if policy.reach is not None:
        newest = tokens.position.amax(dim=1, keepdim=True)
        must |= tokens.position > newest + 1 - policy.reach.window
    return must & tokens.real
