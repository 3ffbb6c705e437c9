"""What a retention policy is: data that says how much is kept near, what of it, and how it is read.

    policy = SirLLM(budget=1024)
    cache = RetentionCache(model, policy)
    read(model, cache, ids)                        # any number of them; 1,024 are kept

A policy knows tokens by what is known of them (`Tokens`), never keys, layers or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

from torch import Tensor

from ...errors import ConfigError
from ...kernels.base import Attended
from .tokens import Tokens

if TYPE_CHECKING:
    import torch

    from .storage import StorageFormat

Scores = Literal["surprisal", "previous", "mass"]
"""What a policy ranks by: each token's own surprisal; the one that SirLLM's public code computes
(that of its predecessor, seen again); or the attention it was given."""


Sharing = Literal["chunk", "step"]
"""What shares one lookup of far memory: the tokens of a pass, or nothing."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a query sees at true distance, and what it sees beyond (LM-Infinite, arXiv
    2308.16137, section 3: the Lambda mask and the distance ceiling).

    Args:
        window: keys nearer than this are read at their true distance.
        ceiling: the distance at which all others that are still there are read.
        sinks: of those beyond the window, only the first so many and what is pinned; None: whatever
            is near.
        lookup: whether the tokens of a pass share one lookup of far memory, or each has its own.
    """

    window: int
    ceiling: int
    sinks: int | None = None
    lookup: Sharing = "chunk"


class RetentionPolicy(Protocol):
    """What to keep when the budget is full. A frozen dataclass; its fields are its options.

    Every `stride` tokens, counted from the first `budget` of them, the cache asks for priorities
    and keeps the `budget - stride` tokens with the highest. So what is kept depends on the text,
    and not on the chunks it was read in.
    """

    name: ClassVar[str]

    @property
    def budget(self) -> int | None:
        """Most tokens near; None: all."""

    @property
    def stride(self) -> int:
        """Tokens that are read between one eviction and the next."""

    @property
    def scores(self) -> Scores | None:
        """What has to be known of a token to rank it."""

    @property
    def reach(self) -> Reach | None:
        """None: all that is kept is read as if it were contiguous, each key at its slot."""

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """float [B, S], the higher the sooner kept. `turn` is the one being read."""

    def far(self, shape: FarShape) -> Far | None:
        """Where one layer's evicted tokens go; None: nowhere."""


@dataclass(frozen=True, slots=True)
class FarShape:
    """What a layer's far memory is made for: B rows, H KV heads, Hq query heads, D channels."""

    rows: int
    heads: int
    query_heads: int
    dim: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class Leaving:
    """Tokens that leave the window, n of each row, oldest first.

    Args:
        keys, values: [B, H, n, D], keys raw.
        real: bool [B, n], what is no padding.
        wanted: [B, Hq, n] float32, the mean logit that each query head gave each of them over the
            `window` tokens that came after it (InfLLM, arXiv 2402.04617, equation 2).
    """

    keys: Tensor
    values: Tensor
    real: Tensor
    wanted: Tensor


class Far(Protocol):
    """One layer's memory of what left the window, read at one constant distance."""

    def add(self, leaving: Leaving) -> None:
        """Take tokens in."""

    def read(self, q: Tensor, scale: float | None) -> Attended | None:
        """What q [B, Hq, T, D], already turned by the constant distance, reads of it: out
        [B, Hq, T, D] and lse [B, Hq, T], base 2. All T tokens share one lookup. None while it
        holds nothing. `scale` is of the logits, by default 1 / sqrt(D)."""

    def fork(self) -> Far:
        """One that takes in tokens of its own from here on."""

    def state(self) -> dict[str, Tensor]:
        """All that is needed to be made anew, by name."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what `state` was taken from."""

    @property
    def nbytes(self) -> int:
        """Of all that is held, wherever it lies."""

    def __len__(self) -> int:
        """Tokens that are held, of the longest row."""


def settings(chosen: RetentionPolicy | StorageFormat) -> dict[str, Any]:
    """The options of a policy or a format by name, as it is opened with."""
    return asdict(cast(Any, chosen))


MOST_STRIDE = 256
"""Tokens read between two evictions, unless more are asked for: a larger chunk is no quicker."""


@dataclass(frozen=True, slots=True)
class Budgeted:
    """A policy that keeps the `budget` tokens it ranks highest, and reads them as if nothing lay
    between. What most policies are; they add a name, their options and `priority`.

    Args:
        budget: most tokens stored.
        stride: tokens between one eviction and the next, which must fit into the budget, too; 0:
            about an eighth of the budget, at most 256.
    """

    reach: ClassVar[Reach | None] = None
    budget: int = 1024
    stride: int = 0

    @property
    def scores(self) -> Scores | None:
        """Nothing, unless a policy says otherwise."""
        return None

    def far(self, shape: FarShape) -> None:
        """Nowhere: what is evicted is gone."""


def check_budget(policy: Budgeted, least: int, why: str) -> None:
    """Choose a policy's stride, if it is 0; raise ConfigError unless both are whole
    numbers and the budget has room.

    Args:
        least: tokens that are kept whatever happens.
        why: which they are.
    """
    for option in ("budget", "stride"):
        if not isinstance(value := getattr(policy, option), int):
            raise ConfigError(f"{policy.name}: {option}={value!r} must be a whole number")  # type: ignore[attr-defined]
    if policy.stride == 0:
        object.__setattr__(policy, "stride", _stride(policy.budget, least))
    if policy.stride < 1:
        raise ConfigError(f"{policy.name}: stride={policy.stride} must be at least 1")  # type: ignore[attr-defined]
    if policy.budget < least + 1 + policy.stride:
        raise ConfigError(
            f"{policy.name}: budget={policy.budget} must be at least"  # type: ignore[attr-defined]
            f" {least + 1 + policy.stride}: {why} and one more are kept, and stride={policy.stride}"
            " are read before the next eviction; give more budget, or a smaller stride"
        )


def whole_strides(kept: int, stride: int) -> int:
    """The budget of a policy that needs `kept` tokens: these and one stride, rounded up to whole
    strides, so that chunks of one stride never cross an eviction."""
    return (-(-kept // stride) + 1) * stride


def _stride(budget: int, least: int) -> int:
    """A divisor of the budget if there is one of that size, so that chunks of one stride never
    cross an eviction."""
    most = max(1, min(MOST_STRIDE, budget // 8, budget - least - 1))
    divisors = [n for n in range(max(1, most // 2), most + 1) if budget % n == 0]
    return divisors[-1] if divisors else most
