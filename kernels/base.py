"""The vocabulary of attention over memory: banks, summaries, rotations, and what every op checks.

Letters, everywhere in this package: B sequences, Hq query heads, H KV heads, G = Hq / H query heads
to a KV head, D head dimension, N blocks in the pool, P tokens in a block, S selected blocks. Query
head h reads KV head h // G. `lse` is the logarithm of a sum of exponentials to base 2, as in
FlashInfer and unlike in torch; nothing at all has o = 0 and lse = -inf.

A selection belongs to HS groups of query heads: HS = 1 (shared by the sequence), H (by the query
heads of a KV head) or Hq (each its own). Knows nothing of how anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..errors import ConfigError

Backend = Literal["torch", "triton"]
Format = Literal["plain", "fp8", "int8", "int4"]
Pairing = Literal["half", "interleaved"]
SummaryKind = Literal["mean", "bounds", "tokens"]
Share = Literal["sequence", "kv_head", "query_head"]
Reduce = Literal["max", "mean", "softmax"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
BLOCKS = (16, 32, 64, 128, 256)
"""Tokens that a block may have: a tile of it must be a power of two, and no smaller than a dot."""

CHANNELS = 64
"""Channels of a 4-bit value that share a scale."""

WIDEST = 256
"""Largest head dimension that fits the registers of one program."""


@dataclass(frozen=True, slots=True)
class Bank:
    """Keys and values in blocks, in one storage format. A block is immutable once it is full.

    Args:
        keys, values: [N, H, P, D], of one float dtype if `plain`; float8_e4m3fn if `fp8`, int8 if
            `int8`; uint8 [N, H, P, D / 2] if `int4`, the low nibble of byte c is channel c, the
            high one channel c + D / 2.
        lengths: int32 [N], valid tokens of each block; None: P of each.
        key_scale, value_scale: float16 [N, H, P], one for each token and head, if `fp8` or `int8`.
            If `int4`: keys by channel over the block's tokens [N, H, D], values by token over 64
            channels [N, H, P, D / 64] (KIVI's asymmetry, arXiv 2402.02750, section 3).
        key_zero, value_zero: of `int4`, float16, shaped as the scales: x = scale * nibble + zero.

    Raises:
        ConfigError: a shape, a dtype, a device or a layout breaks a rule.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor | None = None
    format: Format = "plain"
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    key_zero: Tensor | None = None
    value_zero: Tensor | None = None

    def __post_init__(self) -> None:
        one_of("format", self.format, get_args(Format))
        n, h, p, _ = dims("keys", self.keys, "[N, H, P, D]")
        if n == 0 or h == 0:
            raise ConfigError(f"keys={tuple(self.keys.shape)} is an empty bank; it needs a block")
        if p not in BLOCKS:
            raise ConfigError(
                f"keys={tuple(self.keys.shape)} has P={p}; it must be one of {BLOCKS}"
            )
        d = self.dim
        if d % 16 or not 16 <= d <= WIDEST:
            raise ConfigError(f"keys has D={d}; it must be a multiple of 16 up to {WIDEST}")
        stored = _STORED[self.format]
        shape = tuple(self.keys.shape)
        for name in ("keys", "values"):
            check(name, getattr(self, name), shape, stored, self.keys.device)
        if self.values.dtype != self.keys.dtype:
            raise ConfigError(
                f"values is {self.values.dtype}; it must be {self.keys.dtype}, as keys"
            )
        if self.lengths is not None:
            check("lengths", self.lengths, (n,), (torch.int32,), self.keys.device)
        if self.format == "int4" and d % CHANNELS:
            raise ConfigError(f"keys has D={d}; int4 needs a multiple of {CHANNELS}")
        for name, wanted in _scales(self.format, n, h, p, d).items():
            given = getattr(self, name)
            if (given is None) != (wanted is None):
                verb = "needs" if given is None else "has no"
                raise ConfigError(f"format={self.format!r} {verb} {name}; see `quantize`")
            if given is not None:
                check(name, given, wanted or (), (torch.float16,), self.keys.device)

    @property
    def dim(self) -> int:
        """D."""
        return self.keys.shape[3] * (2 if self.format == "int4" else 1)

    @property
    def heads(self) -> int:
        """H."""
        return self.keys.shape[1]

    @property
    def block(self) -> int:
        """P."""
        return self.keys.shape[2]


_STORED: dict[Format, tuple[torch.dtype, ...]] = {
    "plain": (*FLOATS, torch.float64),
    "fp8": (torch.float8_e4m3fn,),
    "int8": (torch.int8,),
    "int4": (torch.uint8,),
}


def _scales(format: Format, n: int, h: int, p: int, d: int) -> dict[str, tuple[int, ...] | None]:
    token, key, value = (n, h, p), (n, h, d), (n, h, p, d // CHANNELS)
    by_token, four = format in ("fp8", "int8"), format == "int4"
    return {
        "key_scale": token if by_token else key if four else None,
        "value_scale": token if by_token else value if four else None,
        "key_zero": key if four else None,
        "value_zero": value if four else None,
    }


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary angles for keys that a bank holds raw, before rotation.

    Args:
        cos, sin: float32 [M, D / 2]; row m is position m. Worked out in float64 (see `rotary`), as
            float32 angles are off by 0.05 rad at a million tokens.
        base: int32 [B, HS, S] or [B, 1, S], position of each selected block's first key.
        step: 1, key j of a block stands at base + j; 0, all of a block's keys stand at base.
        pairing: which two channels are rotated together: "half", c and c + D / 2 (Llama's code in
            transformers); "interleaved", 2c and 2c + 1 (the paper's; GPT-J).
    """

    cos: Tensor
    sin: Tensor
    base: Tensor
    step: Literal[0, 1] = 1
    pairing: Pairing = "half"

    def __post_init__(self) -> None:
        one_of("pairing", self.pairing, get_args(Pairing))
        one_of("step", self.step, (0, 1))
        dims("base", self.base, "[B, HS, S]")
        m, half = dims("cos", self.cos, "[M, D / 2]")
        for name in ("cos", "sin"):
            table = (torch.float32, torch.float64)
            check(name, getattr(self, name), (m, half), table, self.cos.device)
        check("base", self.base, tuple(self.base.shape), (torch.int32,), self.cos.device)


@dataclass(frozen=True, slots=True)
class Summaries:
    """What stands for each block when blocks are looked for.

    Args:
        data: [Bs, N, H, r, D] of one float dtype, Bs is B, or 1 if all sequences share it. `mean`:
            r = 1, the mean key. `bounds`: r = 2, the elementwise maximum and minimum of the keys,
            which bound every key's score from above (Quest, arXiv 2406.10774, section 3.2).
            `tokens`: r keys of the block that represent it; their scores add up (InfLLM,
            arXiv 2402.04617, equation 3). A row of NaN is never selected.
        span: neighbouring blocks that each of the N stands for together, the last maybe for fewer.
    """

    data: Tensor
    kind: SummaryKind = "mean"
    span: int = 1

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(SummaryKind))
        _, n, _, r, d = dims("summaries", self.data, "[Bs, N, H, r, D]")
        if n == 0:
            raise ConfigError(f"summaries={tuple(self.data.shape)} has no block")
        if (self.kind == "mean" and r != 1) or (self.kind == "bounds" and r != 2) or r == 0:
            raise ConfigError(
                f"summaries has r={r}; kind={self.kind!r} needs {_REPRESENT[self.kind]}"
            )
        if d % 16 or not 16 <= d <= WIDEST:
            raise ConfigError(f"summaries has D={d}; it must be a multiple of 16 up to {WIDEST}")
        if self.span < 1:
            raise ConfigError(f"span={self.span} must be at least 1")
        floats = (*FLOATS, torch.float64)
        check("summaries", self.data, tuple(self.data.shape), floats, self.data.device)


_REPRESENT: dict[SummaryKind, str] = {"mean": "1", "bounds": "2", "tokens": "at least 1"}


class Attended(NamedTuple):
    """What a query read: out [B, Hq, D] float32, lse [B, Hq] float32 base 2, and, if asked for, the
    probability mass of each key summed over the query heads that read it [B, HS, S, P] float32.
    Of `attend`, which reads for T tokens: [B, Hq, T, D], [B, Hq, T] and [B, H, S]."""

    out: Tensor
    lse: Tensor
    mass: Tensor | None = None


class Seen(NamedTuple):
    """Which keys each query sees. Made once by `seen`, read by every layer.

    Args:
        added: [B or 1, 1, T, S], of the queries' dtype, added to the logits: 0 or -inf.
        blind: bool [B or 1, 1, T], queries that see nothing; None if there is none.
    """

    added: Tensor
    blind: Tensor | None = None


def seen(visible: Tensor, dtype: torch.dtype) -> Seen:
    """bool [B or 1, T, S], whether a query sees a key, for logits of `dtype`."""
    added = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    blind = ~visible.any(dim=-1)
    return Seen(
        added.masked_fill_(~visible, float("-inf"))[:, None],
        blind[:, None] if bool(blind.any()) else None,
    )


class Selected(NamedTuple):
    """The best blocks, best first, equal scores by id: ids int32 [B, HS, k] padded with -1, scores
    float32 [B, HS, k] padded with -inf."""

    ids: Tensor
    scores: Tensor


class Nearest(NamedTuple):
    """The nearest rows, best first, equal scores by row: rows int32 and scores float32 [B, k]."""

    rows: Tensor
    scores: Tensor


class Compacted(NamedTuple):
    """What is left: keys and values [H, M, D], and where each old entry went, int32 [H or 1, N], -1
    if it was dropped."""

    keys: Tensor
    values: Tensor
    moved: Tensor


def dims(name: str, tensor: Tensor, layout: str) -> tuple[int, ...]:
    """The sizes of a tensor whose layout reads "[B, H, D]".

    Raises:
        ConfigError: it has more or fewer dimensions.
    """
    shape = tuple(tensor.shape)
    if len(shape) != layout.count(",") + 1:
        raise ConfigError(f"{name}={shape} must be {layout}")
    return shape


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Raise ConfigError unless a tensor has this shape, one of these dtypes, this device, and its
    elements one after the other."""
    if tuple(tensor.shape) != shape:
        raise ConfigError(f"{name}={tuple(tensor.shape)} must have shape {shape}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(each).removeprefix("torch.") for each in dtypes)
        raise ConfigError(f"{name} is {tensor.dtype}; it must be one of {names}")
    if tensor.device != device:
        raise ConfigError(f"{name} is on {tensor.device}; it must be on {device}")
    if not tensor.is_contiguous():
        raise ConfigError(f"{name} is not contiguous; call .contiguous() on it")


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ConfigError unless a value is one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} must be one of {allowed}")


def rows_of(groups: int, query_heads: int, kv_heads: int) -> int:
    """Query heads that share each of a selection's groups.

    Raises:
        ConfigError: the selection is neither by sequence, nor by KV head, nor by query head.
    """
    if query_heads % kv_heads:
        raise ConfigError(f"q has Hq={query_heads}; it must be a multiple of H={kv_heads}")
    if groups not in (1, kv_heads, query_heads):
        raise ConfigError(f"ids has HS={groups}; it must be 1, H={kv_heads} or Hq={query_heads}")
    return query_heads // groups
