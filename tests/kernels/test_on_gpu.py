"""Merging and decode on a GPU: bfloat16 at real sizes, and what no CPU can tell."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from palimpsest.kernels import ops
from palimpsest.kernels.base import Attended, Bank, Format, Pairing, Rotation
from palimpsest.kernels.decode import reference
from palimpsest.kernels.decode.formats import quantize
from torch import Tensor

from .cases import (
    LIMITS,
    ROUNDED,
    Tolerance,
    assert_attended,
    error,
    random_bank,
    random_ids,
    random_query,
    random_rotation,
    seeded,
    worst,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

N, S, P, H = 200, 32, 64, 8
BRAIN = torch.bfloat16


def on_gpu(each: Any) -> Any:
    """A tensor, a bank or a rotation there, and all of its tensors."""
    if isinstance(each, Bank | Rotation):
        names = each.__dataclass_fields__
        return replace(each, **{name: on_gpu(getattr(each, name)) for name in names})
    return each.cuda() if isinstance(each, Tensor) else each


def assert_gpu(q: Tensor, bank: Bank, ids: Tensor, limit: Tolerance, **how: Any) -> Attended:
    given = {name: on_gpu(each) for name, each in how.items()}
    ours = ops.gather_decode(on_gpu(q), on_gpu(bank), on_gpu(ids), check_ids=True, **given)
    how.pop("splits", None)
    truth = reference.gather_decode(q, bank, ids, scale=q.shape[-1] ** -0.5, **how)
    assert_attended(ours, truth, limit)
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BRAIN], ids=str)
@pytest.mark.parametrize("g", [1, 3, 4, 7, 8, 16, 40])
@pytest.mark.parametrize("d", [64, 80, 128, 256])
def test_any_dtype_width_and_number_of_query_heads(dtype: torch.dtype, g: int, d: int) -> None:
    bank = random_bank(40, 2, P, d, dtype, ragged=True)
    q, ids = random_query(3, 2 * g, d, dtype), random_ids(3, 2, 8, 40)
    assert_gpu(q, bank, ids, LIMITS[dtype], mass=True)


@pytest.mark.parametrize(("b", "p"), [(1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (8, 64)])
def test_real_sizes(b: int, p: int) -> None:
    bank, q = random_bank(N, H, p, 128, BRAIN, ragged=True), random_query(b, 32, 128, BRAIN)
    assert_gpu(q, bank, random_ids(b, H, S, N), LIMITS[BRAIN])


@pytest.mark.parametrize("groups", [1, H, 32], ids=["sequence", "kv_head", "query_head"])
@pytest.mark.parametrize("per_block", [False, True])
def test_everything_at_once(groups: int, per_block: bool) -> None:
    rng = seeded(0)
    bias, weights = torch.randn(2, groups, S, generator=rng), torch.randn(N, H, P, generator=rng)
    bank = random_bank(N, H, P, 128, BRAIN, ragged=True)
    q, ids = random_query(2, 32, 128, BRAIN, s=S if per_block else 0), random_ids(2, groups, S, N)
    assert_gpu(q, bank, ids, LIMITS[BRAIN], bias=bias, log_weight=weights, mass=True)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("step", [0, 1])
def test_raw_keys(pairing: Pairing, step: int) -> None:
    rotation = random_rotation(2, H, S, 128, pairing=pairing, step=step)
    bank, q = random_bank(N, H, P, 128, BRAIN), random_query(2, 32, 128, BRAIN)
    ids = random_ids(2, H, S, N)
    assert_gpu(q, bank, ids, ROUNDED[BRAIN], rotation=rotation, mass=True)


@pytest.mark.parametrize(
    ("format", "dots"), [("fp8", torch.float16), ("int8", BRAIN), ("int4", torch.float16)]
)
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("pairing", [None, "half", "interleaved"])
def test_quantized_banks(
    format: Format, dots: torch.dtype, d: int, pairing: Pairing | None
) -> None:
    assert format != "plain"
    bank, q = quantize(random_bank(N, H, P, d), format), random_query(2, 32, d, BRAIN)
    rotation = random_rotation(2, 1, S, d, pairing=pairing) if pairing else None
    limit = ROUNDED[dots] if pairing or format == "int4" else LIMITS[dots]
    assert_gpu(q, bank, random_ids(2, H, S, N), limit, rotation=rotation, mass=True)


def test_the_split_does_not_change_the_result() -> None:
    bank, q = random_bank(N, H, P, 128, BRAIN), random_query(1, 32, 128, BRAIN)
    for splits in (1, 2, 7, 32, None):
        assert_gpu(q, bank, random_ids(1, H, S, N), LIMITS[BRAIN], splits=splits)


def test_a_result_is_the_same_bits_every_time() -> None:
    bank, q = on_gpu(random_bank(N, H, P, 128, BRAIN)), random_query(8, 32, 128, BRAIN).cuda()
    ids = random_ids(8, H, S, N).cuda()
    first, *others = (ops.gather_decode(q, bank, ids, mass=True) for _ in range(5))
    for other in others:
        assert torch.equal(first.out, other.out) and torch.equal(first.lse, other.lse)
        assert first.mass is not None and other.mass is not None
        assert torch.equal(first.mass, other.mass)


def test_a_cuda_graph_holds_it() -> None:
    bank, q = on_gpu(random_bank(N, H, P, 128, BRAIN)), random_query(1, 32, 128, BRAIN).cuda()
    ids = random_ids(1, H, S, N, holes=False).cuda()

    def call() -> Attended:
        return ops.gather_decode(q, bank, ids, mass=True)

    call()  # compiled before it is captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = call()
    ids.copy_(random_ids(1, H, S, N, seed=9))
    graph.replay()
    assert_attended(held, call(), LIMITS[torch.float32])


@pytest.mark.parametrize(("r", "d"), [(1, 64), (3, 80), (32, 128), (70, 256)])
def test_partials_are_merged(r: int, d: int) -> None:
    rng = seeded(r)
    o, lse = torch.randn(r, 8, 32, d, generator=rng), 20 * torch.randn(r, 8, 32, generator=rng)
    lse[:, 3], o[:, 3] = -torch.inf, torch.nan
    ours = ops.merge_partials(o.cuda(), lse.cuda())
    truth = ops.merge_partials(o, lse)
    limit = LIMITS[torch.float32]
    assert error(ours[0], truth[0]) <= limit.out and worst(ours[1], truth[1]) <= limit.lse
