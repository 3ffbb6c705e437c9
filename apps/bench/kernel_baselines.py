"""What others offer to attend to selected blocks, each in its best form that we know of.

The query heads of a KV head are given as as many query tokens of it: without a causal mask this is
grouped-query attention, reads each key once, and every kernel can do it. A baseline that cannot run
says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from ...errors import PalimpsestError
from ...kernels.base import Bank
from ...kernels.timing import Call
from .kernel_cases import SINKS, WINDOW, Inputs

Calls = Sequence[Call]


class Unavailable(PalimpsestError):
    """A baseline cannot run here; says why."""


def gathered(bank: Bank, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of the selected keys and values [B, H, S * P, D] of a plain bank."""
    n, h, p, d = bank.keys.shape
    b, _, s = ids.shape
    head = torch.arange(h, dtype=ids.dtype, device=ids.device)[:, None]
    rows = (ids * h + head).view(-1)
    keys, values = (x.view(n * h, p, d).index_select(0, rows) for x in (bank.keys, bank.values))
    return keys.view(b, h, s * p, d), values.view(b, h, s * p, d)


def packed(q: Tensor, heads: int) -> Tensor:
    """[B, Hq, D] as [B, H, G, D]."""
    return q.view(q.shape[0], heads, -1, q.shape[-1])


def plain_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What one would write by hand: [B, H, G, D] queries, [B, H, T, D] keys and values."""
    scores = q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return scores.float().softmax(dim=-1).to(q.dtype) @ values


def gather_sdpa(inputs: Inputs, backend: SDPBackend | None = None) -> Calls:
    """A, B: copy what is selected, then SDPA; by one backend, or by whichever torch chooses."""
    if backend not in (None, SDPBackend.FLASH_ATTENTION):
        _needs_cuda(inputs, "the backend")

    def call(q: Tensor, ids: Tensor) -> Tensor:
        keys, values = gathered(inputs.bank, ids)
        if backend is None or not q.is_cuda:
            return sdpa(packed(q, inputs.case.h), keys, values)
        with sdpa_kernel(backend):
            return sdpa(packed(q, inputs.case.h), keys, values)

    return _each(inputs, call)


def gather_plain(inputs: Inputs, compiled: bool = False) -> Calls:
    """E: copy, then matrix products and a softmax."""

    def attend(q: Tensor, ids: Tensor) -> Tensor:
        return plain_attention(packed(q, inputs.case.h), *gathered(inputs.bank, ids))

    if compiled:
        _needs_cuda(inputs, "the compiled form")
        _to_compile(inputs)
        torch.compiler.reset()  # else the shapes of many cases count against its limit
        return _each(inputs, torch.compile(attend, dynamic=False))
    return _each(inputs, attend)


def flex(inputs: Inputs, shared: bool) -> Calls:
    """C: FlexAttention over the dense bank, whose block mask is the selection. A selection that all
    heads share, as partial blocks, keeps its decoding kernel."""
    _needs_cuda(inputs, "its decoding kernel")
    _to_compile(inputs)
    _needs_dense(inputs)
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    run: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    keys, values = inputs.dense
    masks = [flex_mask(inputs, ids, shared) for ids in inputs.ids]
    return [
        partial(run, q[:, :, None], keys, values, block_mask=mask, enable_gqa=True)
        for q, mask in zip(inputs.queries, masks, strict=True)
    ]


def flex_mask(inputs: Inputs, ids: Tensor, shared: bool) -> Any:
    """The block mask of a selection: of every head its own, in full blocks; or of all heads that of
    the first, in partial ones whose every token counts."""
    from torch.nn.attention.flex_attention import BlockMask

    case = inputs.case
    own = torch.arange(case.b, device=ids.device)[:, None, None] * case.blocks
    chosen = (ids - own) % case.blocks
    chosen = chosen[:, :1] if shared else chosen.repeat_interleave(case.hq // case.h, dim=1)
    padded = chosen.new_zeros(*chosen.shape[:2], 1, case.blocks, dtype=torch.int32)
    padded[..., 0, : case.selected] = chosen
    count = torch.full(padded.shape[:3], case.selected, dtype=torch.int32, device=ids.device)
    none = torch.zeros_like(count)
    how: dict[str, Any] = {"BLOCK_SIZE": (128, case.p), "seq_lengths": (1, case.n)}
    if shared:
        return BlockMask.from_kv_blocks(count, padded, compute_q_blocks=False, **how)
    return BlockMask.from_kv_blocks(
        none, torch.zeros_like(padded), count, padded, compute_q_blocks=False, **how
    )


def varlen(inputs: Inputs) -> Calls:
    """D: torch's paged attention, in which each KV head of a sequence is a sequence of its own, so
    that nothing is copied. Its pages have 256 tokens."""
    _needs_cuda(inputs, "its kernel")
    case = inputs.case
    if case.p != 256:
        raise Unavailable(f"its pages have 256 tokens, these blocks {case.p}")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unavailable(f"torch {torch.__version__} has no varlen_attn") from error
    rows, device = case.b * case.h, inputs.clock.device
    keys, values = (x.view(-1, case.p, 1, case.d) for x in (inputs.bank.keys, inputs.bank.values))
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
    used = torch.full((rows,), case.tokens, dtype=torch.int32, device=device)
    head = torch.arange(case.h, dtype=torch.int32, device=device)[:, None]

    def call(q: Tensor, ids: Tensor) -> object:
        pages = (ids * case.h + head).view(rows, -1)
        heads = q.view(rows, -1, case.d)
        return varlen_attn(
            heads, keys, values, starts, None, 1, case.tokens,
            enable_gqa=True, seqused_k=used, block_table=pages,
        )  # fmt: skip

    return _each(inputs, call)


def dense_sdpa(inputs: Inputs, grouped: bool = False) -> Calls:
    """F: SDPA over the whole bank, the queries packed, or by `enable_gqa`."""
    _needs_dense(inputs)
    keys, values = inputs.dense
    if grouped:
        calls = [
            partial(sdpa, q[:, :, None], keys, values, enable_gqa=True) for q in inputs.queries
        ]
    else:
        calls = [partial(sdpa, packed(q, inputs.case.h), keys, values) for q in inputs.queries]
    return calls


def dense_plain(inputs: Inputs) -> Calls:
    """E over the whole bank."""
    _needs_dense(inputs)
    keys, values = inputs.dense
    return [
        partial(plain_attention, packed(q, inputs.case.h), keys, values) for q in inputs.queries
    ]


def copy(inputs: Inputs) -> Calls:
    """As many bytes, read and written by one copy: what the memory allows at this size."""
    size = inputs.case.read_bytes // 2
    count = max(2, inputs.clock.rotations(2 * size, 16))
    pairs = torch.zeros(count, 2, size, dtype=torch.int8, device=inputs.clock.device)
    return [partial(target.copy_, source) for source, target in pairs]


def matmul_topk(inputs: Inputs, part: str = "both") -> Calls:
    """Scores by a matrix product with summaries as it likes them [B, H, D, nb], the best query head
    counts, then `torch.topk`; or only one of the two."""
    case = inputs.case
    k = case.selected
    ready = [each.data[..., 0, :].permute(0, 2, 3, 1).contiguous() for each in inputs.summaries]

    def product(q: Tensor, data: Tensor) -> Tensor:
        return (packed(q, case.h) @ data).amax(dim=2)

    given = [(q, ready[at % len(ready)]) for at, q in enumerate(inputs.queries)]
    if part == "matmul":
        return [partial(product, q, data) for q, data in given]
    if part == "topk":
        return [partial(torch.topk, product(q, data), k) for q, data in given[:16]]
    return [partial(lambda q, data: torch.topk(product(q, data), k), q, data) for q, data in given]


def composed_step(inputs: Inputs) -> Calls:
    """A, whole: matrix product, top-k between the ends, copy, SDPA."""
    case = inputs.case
    ready = [each.data[..., 0, :].permute(0, 2, 3, 1).contiguous() for each in inputs.summaries]
    device, last = inputs.clock.device, case.blocks - WINDOW
    ends = torch.tensor([*range(SINKS), *range(last, case.blocks)], device=device)
    ends = ends.expand(case.b, case.h, -1)
    table = inputs.memories[0].table
    assert table is not None
    offset = table[:, :1, None]

    def call(q: Tensor, data: Tensor) -> Tensor:
        scores = (packed(q, case.h) @ data[..., SINKS:last]).amax(dim=2)
        best = scores.topk(case.selected - SINKS - WINDOW).indices + SINKS
        ids = (torch.cat([ends, best], dim=2) + offset).int()
        return sdpa(packed(q, case.h), *gathered(inputs.bank, ids))

    return [partial(call, q, ready[at % len(ready)]) for at, q in enumerate(inputs.queries)]


def _each(inputs: Inputs, call: Callable[[Tensor, Tensor], object]) -> Calls:
    return [partial(call, q, ids) for q, ids in zip(inputs.queries, inputs.ids, strict=True)]


def _needs_cuda(inputs: Inputs, what: str) -> None:
    if not inputs.clock.cuda:
        raise Unavailable(f"{what} is for CUDA")


def _to_compile(inputs: Inputs) -> None:
    if not inputs.case.compiled:
        raise Unavailable("compiled for other cases only")


def _needs_dense(inputs: Inputs) -> None:
    if inputs.owned < inputs.case.b:
        raise Unavailable(f"{inputs.case.b} banks do not fit")
