"""One KV cache, many policies: it stores raw keys, owns all positions, and evicts by a policy.

    cache = RetentionCache(model, SinkWindow(budget=1024))
    with cache.attached(model):
        model.generate(ids, past_key_values=cache, prefill_chunk_size=cache.stride)

*Tokens seen* (`get_seq_length`, what `generate` counts by) and *tokens stored* are two numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import copy as copy_of
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from ...errors import ConfigError, InputError
from ...kernels.base import Attended
from .attention import attached
from .base import RetentionPolicy
from .compatible import check_heir, check_together
from .eviction import choose
from .near import NearLayer
from .plan import Plan, make_plan, places
from .rope import Angles, Rope
from .storage import Plain, StorageFormat
from .surprisal import Surprisal
from .tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RetentionCache(Cache):  # type: ignore[misc]  # transformers has no types
    """A transformers `Cache` for a model that is attached (see `attached`).

    The first `budget` tokens are all there is room for; from then on, every `stride` tokens, the
    policy chooses `budget - stride` that stay. What stays depends on the text alone.

    Args:
        model: whose cache it is; it is not kept.
        policy: what is kept, and how it is read.
        form: how near keys and values are held.

    Attributes:
        broken: an eviction broke off midway; the cache is of no further use.

    Raises:
        CapabilityError: the model has no rotary embedding that can be taken over.
        ConfigError: policy and form do not go together.
    """

    def __init__(
        self, model: PreTrainedModel, policy: RetentionPolicy, form: StorageFormat | None = None
    ) -> None:
        self.policy = policy
        self.form = form or Plain()
        self.rope = Rope.of(model)
        check_together(policy, self.form)
        self.turn = 0
        self.seen = 0
        self._settled_at = 0
        self.broken = False
        self._scores = Surprisal(policy.scores)
        self._tokens: Tokens | None = None
        self._counts = torch.zeros(0)
        self._plan: Plan | None = None
        self._mass: Tensor | None = None
        self.active = self.coming = False
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[NearLayer(policy, self.form, self.rope) for _ in range(layers)])

    # Around a model.

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """`model` reads and writes this cache inside the block, if it is also given it as
        past_key_values."""
        return attached(model, self)

    @property
    def observes(self) -> bool:
        """Whether `observe` must be given the logits of every token."""
        return self.policy.scores in ("surprisal", "previous")

    @property
    def stride(self) -> int | None:
        """Tokens that may be read at once, whatever was read before; None: any number."""
        return self.policy.stride if self.policy.budget is not None else self.form.stride

    @property
    def room(self) -> int | None:
        """Tokens that may be read before the next eviction, at least 1; None: any number."""
        stride, first = self.stride, self.policy.budget or 0
        if stride is None:
            return None
        return first - self.seen if self.seen < first else stride - (self.seen - first) % stride

    def begin_turn(self) -> None:
        """What is read from now on belongs to the next turn; scores of the others fade."""
        self.turn += 1

    def observe(self, ids: Tensor, logits: Tensor) -> None:
        """Score the tokens just read.

        Args:
            ids: [B, T], the last T tokens that went through the model.
            logits: [B, T, V], what the model said at each of them.
        """
        tokens = self.tokens
        if ids.shape[1] > len(tokens):
            raise InputError(
                f"ids={tuple(ids.shape)} has more tokens than the {len(tokens)} that are stored;"
                " observe each chunk before the next is read"
            )
        tokens.id[:, -ids.shape[1] :] = ids.cpu()
        if self.observes:
            self._scores.observe(tokens, ids, logits)

    # What it holds.

    @property
    def tokens(self) -> Tokens:
        """What is known of each near token.

        Raises:
            InputError: nothing was read yet.
        """
        if self._tokens is None:
            raise InputError("the cache has read nothing yet; read a text first")
        return self._tokens

    @property
    def stored(self) -> int:
        """Tokens that can be read, near and far, of the longest row."""
        if self._tokens is None:
            return 0
        far = self.layers[0].far
        return len(self._tokens) + (len(far) if far is not None else 0)

    @property
    def nbytes(self) -> int:
        """Of all that is held, in all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def pin(self, start: int, end: int) -> None:
        """Keep the tokens at positions start..end-1 of every row, whatever their scores.

        Raises:
            InputError: some of them are no longer near.
        """
        tokens = self.tokens
        inside = (tokens.position >= start) & (tokens.position < end)
        there = int(inside.sum(dim=1).min())
        if there < end - start:
            raise InputError(
                f"positions {start} to {end - 1} are to be pinned, and {end - start - there} of"
                " them are not near; pin tokens before they are evicted"
            )
        tokens.pinned |= inside

    # A forward pass.

    def attend(
        self,
        layer: int,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        real: Tensor | None,
        scale: float,
    ) -> Tensor:
        """What the new tokens read in one layer; called by the attention function.

        Args:
            q: [B, Hq, T, D], raw; so are `keys` and, of course, `values`, [B, H, T, D].
            real: bool [B, T], which of the new tokens are no padding; None: all.

        Returns:
            [B, Hq, T, D].
        """
        if layer == 0 or self._plan is None:
            self._begin(q.shape[0], q.shape[2], real)
        assert self._plan is not None
        plan = self._plan.on(q.device)
        wants_mass = self.policy.scores == "mass"
        read: Attended = self.layers[layer].attend(q, keys, values, plan, scale, wants_mass)
        if read.mass is not None:
            column = read.mass.sum(dim=1).float().cpu()
            self._mass = column if self._mass is None else self._mass + column
        if layer == len(self.layers) - 1:
            self._end(q.shape[2])
        return read.out.to(q.dtype)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kw: object
    ) -> tuple[Tensor, Tensor]:
        """Hands keys and values on to the attention function.

        Raises:
            ConfigError: the model is not attached.
        """
        if not self.active:
            raise ConfigError(
                "a retention cache was given to a model that it is not attached to; run it inside"
                " `with cache.attached(model):`"
            )
        self.coming = True
        return key_states, value_states

    def _begin(self, rows: int, new: int, real: Tensor | None) -> None:
        self._undo_unfinished()
        if self._tokens is None:
            self._tokens = Tokens.empty(rows)
            self._counts = torch.zeros(rows, 1, dtype=torch.int64)
        if rows != self._tokens.rows:
            raise InputError(f"a batch of {rows} rows, and the cache holds {self._tokens.rows}")
        self.settle()
        if self.room is not None and new > self.room:
            raise InputError(
                f"{new} tokens were given at once, and {self.room} fit before the next eviction;"
                f" read them with `read`, or generate with prefill_chunk_size={self.stride}"
            )
        there = torch.ones(rows, new, dtype=torch.bool) if real is None else real.cpu()
        position = torch.where(there, self._counts + there.cumsum(dim=1) - 1, -1)
        self._tokens.append(position, self.turn)
        packed = self.form.stride is not None
        self._plan = make_plan(self._tokens, new, self.policy.reach, self.rope, every_slot=packed)

    def _end(self, new: int) -> None:
        """All layers have read: the new tokens count."""
        assert self._tokens is not None
        there = self._tokens.real[:, -new:]
        self._counts = self._counts + there.sum(dim=1, keepdim=True)
        if self._mass is not None:
            self._tokens.score = self._tokens.score.nan_to_num(nan=0.0) + self._mass
        self._plan = self._mass = None
        self.coming = False
        self._count(self.seen + new)

    def _count(self, seen: int) -> None:
        self.seen = seen
        for layer in self.layers:
            layer.seen = seen

    def _undo_unfinished(self) -> None:
        """A pass that broke off midway has left tokens in some layers: they never were.

        Raises:
            InputError: it broke off while it evicted, which cannot be undone.
        """
        if self.broken:
            raise InputError(
                "the cache broke off while it evicted, and cannot be used; go on from a fork that"
                " was made before, or read the text anew"
            )
        if self._plan is not None and self._tokens is not None:
            start = self._plan.start
            self._tokens.cut(start)
            for layer in self.layers:
                layer.cut(start)
            self._plan = self._mass = None

    # Between two passes.

    def settle(self) -> None:
        """Evict, if it is due: what a pass does first. Idempotent."""
        self._undo_unfinished()
        tokens, stride, budget = self._tokens, self.stride, self.policy.budget
        past = self.seen - (budget or 0)
        if tokens is None or stride is None or past < 0 or past % stride:
            return
        if self._settled_at == self.seen:
            return
        if budget is not None:
            chosen = choose(self.policy, tokens, self.turn, budget - stride)
            self.broken = True  # until all layers have followed
            self._evict(tokens, *chosen)
        else:
            self.broken = True
            for layer in self.layers:
                layer.store.settle()
        self.broken, self._settled_at = False, self.seen

    def _evict(self, tokens: Tokens, kept: Tensor, left: Tensor) -> None:
        real = tokens.real.gather(1, left)
        tokens.keep(kept)
        angles = self.rope.angles(places(tokens, None)) if self.policy.reach is None else None
        window = 0 if self.policy.reach is None else self.policy.reach.window
        for layer in self.layers:
            at = None if angles is None else _on(angles, layer.device)
            layer.evict(kept, left, real, window, at)

    # Copies.

    def fork(
        self, *, policy: RetentionPolicy | None = None, form: StorageFormat | None = None
    ) -> RetentionCache:
        """A cache that goes on from here on its own; this one is not changed by it.

        Args:
            policy: what the fork keeps from here on, so that several policies share what they
                read before any of them evicts; None: as this one does.
            form: how it holds near keys and values; None: as this one does. So a text can be read
                exactly and packed later: at the first multiple of the form's stride.

        Raises:
            ConfigError: policy and form do not go together.
            InputError: `policy` cannot take over what was read so far.
        """
        self._undo_unfinished()
        if policy is not None:
            check_heir(policy, self.policy, self.seen, evicted=self._settled_at > 0)
        fork = copy_of(self)
        fork.active = False
        fork._tokens = None if self._tokens is None else self._tokens.copy()
        fork._counts = self._counts.clone()
        fork._scores = self._scores.copy()
        fork.layers = [layer.copy() for layer in self.layers]
        if policy is not None:
            fork.policy = policy
            fork._scores.kind = policy.scores
            for layer in fork.layers:
                layer.policy = policy
        if form is not None:
            fork._hold(form)
        return fork

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows, in this order; one may come several times.

        Raises:
            ConfigError: the policy has far memory, which is of whole batches.
        """
        if any(layer.far is not None for layer in self.layers):
            raise ConfigError(
                f"policy {self.policy.name!r} has far memory, whose rows cannot be chosen; generate"
                " without beams, or one row at a time"
            )
        self._undo_unfinished()
        self.tokens.rows_of(indices)
        self._counts = self._counts.index_select(0, indices.cpu())
        self._scores.rows_of(indices)
        for layer in self.layers:
            layer.rows_of(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """What beam search does after each token."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        self.batch_select_indices(torch.arange(self.tokens.rows).repeat_interleave(repeats))

    def reset(self) -> None:
        """Hold nothing, as when it was made."""
        self._tokens = self._plan = self._mass = None
        self.turn = self._settled_at = 0
        self.broken = False
        self._scores.forget()
        self._count(0)
        for number in range(len(self.layers)):
            self.layers[number] = NearLayer(self.policy, self.form, self.rope)

    def counters(self) -> dict[str, Any]:
        """What a file needs of the cache beside tensors, as plain JSON."""
        counts = self._counts[:, 0].tolist()
        return {
            "turn": self.turn,
            "seen": self.seen,
            "settled_at": self._settled_at,
            "counts": counts,
        }

    def carried(self) -> dict[str, Tensor]:
        """Tensors that belong to no token and no layer, by name."""
        return self._scores.state()

    def resume(
        self, tokens: Tokens, counters: Mapping[str, Any], carried: Mapping[str, Tensor]
    ) -> None:
        """Become, but for the layers, the cache that these were taken from."""
        self._tokens = tokens
        self.turn, self._settled_at = counters["turn"], counters["settled_at"]
        self._counts = torch.tensor(counters["counts"], dtype=torch.int64)[:, None]
        self._scores.restore(carried)
        self._count(counters["seen"])

    def _hold(self, form: StorageFormat) -> None:
        check_together(self.policy, form)
        self.form = form
        angles = None
        if self._tokens is not None:
            angles = self.rope.angles(places(self._tokens, self.policy.reach))
        for layer in self.layers:
            layer.hold(form, None if angles is None else _on(angles, layer.device))

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; their number may be negative, as `generate` gives it.

        Raises:
            InputError: some of them made others leave, which crop cannot bring back.
        """
        self._undo_unfinished()
        tokens_to_remove = abs(tokens_to_remove)
        if tokens_to_remove == 0:
            return
        tokens, seen = self.tokens, self.seen - tokens_to_remove
        if seen < self._settled_at:
            raise InputError(
                f"tokens_to_remove={tokens_to_remove} reaches behind the eviction at"
                f" {self._settled_at} tokens, whose tokens are gone; fork the cache before a turn"
                " that may be taken back"
            )
        length = len(tokens) - tokens_to_remove
        gone = tokens.real[:, length:].sum(dim=1, keepdim=True)
        self._counts = self._counts - gone
        observed = bool((tokens.id[:, length:] >= 0).any())
        tokens.cut(length)
        for layer in self.layers:
            layer.cut(length)
        if observed:
            self._scores.forget()
        if self.policy.reach is not None:  # one query may have moved what is now near again
            angles = self.rope.angles(places(tokens, self.policy.reach))
            for layer in self.layers:
                layer.place(_on(angles, layer.device))
        self._count(seen)


def _on(angles: Angles, device: torch.device) -> Angles:
    return angles[0].to(device), angles[1].to(device)
