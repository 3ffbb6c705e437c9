"""The whole step beside a dense float64 softmax, written here on its own, over the same tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.errors import ConfigError
from palimpsest.kernels import ops
from palimpsest.kernels.base import Bank, Share, Summaries
from palimpsest.kernels.decode.formats import dequantized, quantize
from palimpsest.kernels.rotary import table
from palimpsest.kernels.step import Memory, Positions, Segment, Step, read, retrieval_attention
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from .worlds import HQ, D, H, P, World, assert_reads, dense, query, world


def expected_blocks(
    world: World, q: Tensor, k: int, sinks: int, window: int, share: Share
) -> list[list[set[int]]]:
    """Of each sequence and group, by plain loops."""
    groups = {"sequence": 1, "kv_head": H, "query_head": HQ}[share]
    chosen = []
    for scores, count in zip(world.scores(q), world.counts, strict=True):
        first, end = min(sinks, count), max(count - window, min(sinks, count))
        always = {*range(first), *range(end, count)}
        rows = []
        for group in scores.view(groups, HQ // groups, -1):
            best = sorted(range(first, end), key=lambda n: -float(group[:, n].max()))
            rows.append(always | set(best[:k]))
        chosen.append(rows)
    return chosen


def found(step: Step) -> list[list[set[int]]]:
    """The blocks read, each at most once."""
    sets = []
    for sequence in step.blocks.tolist():
        sets.append([{n for n in row if n >= 0} for row in sequence])
        assert [len(row) for row in sets[-1]] == [sum(n >= 0 for n in row) for row in sequence]
    return sets


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any),
    last=st.integers(1, P),
    k=st.integers(1, 9),
    sinks=st.integers(0, 3),
    window=st.integers(0, 4),
    share=st.sampled_from(["sequence", "kv_head", "query_head"]),
    seed=st.integers(0, 1000),
)
def test_the_step_reads_sinks_window_and_the_best_and_nothing_else(
    counts: list[int], last: int, k: int, sinks: int, window: int, share: Share, seed: int
) -> None:
    made, q = world(counts, last, seed), query(len(counts), seed)
    k = min(k, max(counts))
    step = retrieval_attention(q, made.memory, k, sinks=sinks, window=window, share=share)
    assert step.blocks.shape[2] == sinks + k + window
    assert found(step) == expected_blocks(made, q, k, sinks, window, share)
    assert_reads(step, dense(made, q, step.blocks))
    assert not step.out[torch.isneginf(step.lse)].any()


def test_all_blocks_selected_is_dense_attention() -> None:
    made, q = world([7, 5], last=3), query(2)
    step = retrieval_attention(q, made.memory, 7, sinks=0, window=0)
    every = torch.arange(7).expand(2, 1, 7)
    assert_reads(step, dense(made, q, every))


def test_a_sequence_shorter_than_sinks_and_window_is_read_once() -> None:
    made, q = world([2, 4]), query(2)
    step = retrieval_attention(q, made.memory, 1, sinks=2, window=3)
    assert found(step) == [[{0, 1}] * H, [{0, 1, 2, 3}] * H]
    assert_reads(step, dense(made, q, step.blocks))


def test_without_a_table_a_block_is_its_own_number() -> None:
    made, q = world([6]), query(1)
    memory = made.memory
    assert memory.table is not None
    order = memory.table[0].long()
    assert memory.bank.lengths is not None
    bank = Bank(memory.bank.keys[order], memory.bank.values[order], memory.bank.lengths[order])
    plain = retrieval_attention(q, replace(memory, bank=bank, table=None), 2, window=1)
    mixed = retrieval_attention(q, memory, 2, window=1)
    assert torch.equal(plain.blocks, mixed.blocks) and torch.equal(plain.out, mixed.out)


def test_blocks_are_scored_with_the_query_that_was_given_for_it() -> None:
    made, q, other = world([9]), query(1), query(1, seed=10)
    step = retrieval_attention(q, made.memory, 2, score_q=other)
    assert found(step) == expected_blocks(made, other, 2, 1, 4, "kv_head")
    assert_reads(step, dense(made, q, step.blocks))


def test_the_mass_of_each_key_adds_up_to_the_query_heads() -> None:
    made, q = world([6, 3], last=5), query(2)
    step = retrieval_attention(q, made.memory, 2, sinks=1, window=1, mass=True)
    assert step.mass is not None and step.mass.shape == (2, H, 4, P)
    torch.testing.assert_close(step.mass.sum((2, 3)), torch.full((2, H), HQ / H))


class TestPositions:
    """Raw and relative keys are dense rotary attention, however long the text before them."""

    FREQUENCIES = 10_000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)

    def turned(self, x: Tensor, at: Tensor, pairing: str) -> Tensor:
        """x [..., D] at positions, as complex numbers times e^(i angle), in float64."""
        x = x.double()
        half = (x[..., : D // 2], x[..., D // 2 :])
        first, second = half if pairing == "half" else (x[..., 0::2], x[..., 1::2])
        spun = torch.complex(first, second) * torch.polar(
            torch.ones_like(self.FREQUENCIES), at[..., None].double() * self.FREQUENCIES
        )
        if pairing == "half":
            return torch.cat([spun.real, spun.imag], dim=-1)
        return torch.stack([spun.real, spun.imag], dim=-1).flatten(-2)

    def placed(self, made: World, at: Tensor, pairing: str) -> World:
        """The same world, whose bank keeps each key turned to `at` [P], its place in its block."""
        bank = made.memory.bank
        keys = self.turned(bank.keys, at.expand(H, P), pairing).float()
        memory = replace(made.memory, bank=Bank(keys, bank.values, bank.lengths))
        return replace(made, memory=memory)

    @pytest.mark.parametrize("pairing", ["half", "interleaved"])
    @pytest.mark.parametrize("kind", ["raw", "relative"])
    def test_the_step_is_dense_rotary_attention(self, kind: Any, pairing: Any) -> None:
        made, q = world([8, 5], last=7), query(2)
        at = torch.arange(8)[:, None] * P + torch.arange(P)
        keys = self.turned(made.keys, at[None, :, :, None], pairing)
        here = torch.tensor([200, 77], dtype=torch.int32)
        turned = self.turned(q, here[:, None].expand(2, HQ), pairing)
        cos, sin = table(self.FREQUENCIES, torch.arange(256))
        if kind == "relative":
            made = self.placed(made, torch.arange(P), pairing)
        step = retrieval_attention(
            q if kind == "relative" else turned.float(),
            made.memory,
            3,
            window=2,
            score_q=q,
            positions=Positions(kind, cos, sin, here, pairing=pairing),
        )
        assert_reads(step, dense(made, turned, step.blocks, keys))

    def test_a_relative_query_far_away_loses_nothing(self) -> None:
        made, q, here = self.placed(world([6]), torch.arange(P), "half"), query(1), 3_000_000
        at = torch.arange(6)[:, None] * P + torch.arange(P)
        keys = self.turned(made.keys, at[None, :, :, None], "half")
        turned = self.turned(q, torch.full((1, HQ), here), "half")
        cos, sin = table(self.FREQUENCIES, torch.arange(here + 1))
        where = torch.tensor([here], dtype=torch.int32)
        step = retrieval_attention(
            q, made.memory, 1, positions=Positions("relative", cos, sin, where)
        )
        assert_reads(step, dense(made, turned, step.blocks, keys))

    def test_what_positions_need_is_asked_for(self) -> None:
        made, q = world([6]), query(1)
        cos, sin = table(self.FREQUENCIES, torch.arange(200))
        with pytest.raises(ConfigError, match="needs cos and sin"):
            retrieval_attention(q, made.memory, 1, positions=Positions("raw"))
        with pytest.raises(ConfigError, match="needs query"):
            retrieval_attention(q, made.memory, 1, positions=Positions("relative", cos, sin))
        with pytest.raises(ConfigError, match=r"positions\.keys='absolute'"):
            retrieval_attention(
                q,
                made.memory,
                1,
                positions=Positions("absolute", cos, sin),  # type: ignore[arg-type]
            )


class TestSeveralBanks:
    def test_banks_that_share_the_blocks_are_one_bank(self) -> None:
        made, q = world([9], last=4), query(1)
        step = retrieval_attention(q, made.memory, 3)
        ids = torch.gather(
            made.memory.table.expand(H, -1),  # type: ignore[union-attr]
            1,
            step.blocks[0].clamp(min=0).long(),
        )[None]
        ids = torch.where(step.blocks >= 0, ids, -1).int()
        parts = [Segment(made.memory.bank, ids[..., i : i + 3].contiguous(), q) for i in (0, 3, 6)]
        together = read(parts)
        assert_reads(together, dense(made, q, step.blocks))

    def test_banks_of_two_formats_are_one_softmax(self) -> None:
        made, q = world([6]), query(1)
        bank = made.memory.bank
        small = quantize(bank, "int8")
        parts = [
            Segment(bank, torch.tensor([[[0, 1, 2]]], dtype=torch.int32), q),
            Segment(small, torch.tensor([[[3, 4, 5]]], dtype=torch.int32), q),
        ]
        keys, values = dequantized(small, torch.float32)
        mixed = Bank(
            torch.cat([bank.keys[:3], keys[3:]]),
            torch.cat([bank.values[:3], values[3:]]),
            bank.lengths,
        )
        every = torch.arange(6, dtype=torch.int32)[None, None]
        truth = ops.gather_decode(q, mixed, every)
        assert_reads(read(parts), (truth.out.double(), truth.lse.double()))

    def test_a_bank_of_which_nothing_is_read_changes_nothing(self) -> None:
        made, q = world([6]), query(1)
        some = Segment(made.memory.bank, torch.tensor([[[4, 1]]], dtype=torch.int32), q)
        none = replace(some, ids=torch.full((1, 1, 2), -1, dtype=torch.int32))
        alone, both = read([some]), read([none, some])
        assert torch.equal(alone.out, both.out) and torch.equal(alone.lse, both.lse)
        nothing = read([none, none])
        assert not nothing.out.any() and torch.isneginf(nothing.lse).all()

    def test_no_bank_at_all_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="at least one"):
            read([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sinks": -1}, "must not be negative"),
        ({"window": -2}, "must not be negative"),
        ({"k": 0}, "k=0 must be from 1"),
        ({"k": 8}, "k=8 must be from 1 to 7"),
        ({"q": query(3)}, "blocks"),
        ({"q": query(2)[:, :3].contiguous()}, "multiple of H"),
        ({"share": "head"}, "share='head'"),
    ],
)
def test_what_does_not_go_together_is_an_error(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"q": query(2), "memory": world([7, 5]).memory, "k": 2} | change
    with pytest.raises(ConfigError, match=message):
        retrieval_attention(**arguments)


def test_a_table_must_have_a_column_for_every_block() -> None:
    memory = world([7, 5]).memory
    assert memory.table is not None
    short = replace(memory, table=memory.table[:, :4].contiguous())
    with pytest.raises(ConfigError, match="table"):
        retrieval_attention(query(2), short, 2)


class TestNothingWaitsForTheDevice:
    """On tensors without data every look at a value raises, so that no step can depend on one."""

    @pytest.mark.parametrize("kind", ["rotated", "raw", "relative"])
    def test_the_step_looks_at_no_value(self, kind: Any) -> None:
        with FakeTensorMode():
            pool, here = torch.empty(14, H, P, D), torch.empty(2, dtype=torch.int32)
            memory = Memory(
                Bank(pool, pool, torch.empty(14, dtype=torch.int32)),
                Summaries(torch.empty(2, 7, H, 1, D)),
                here,
                torch.empty(2, 7, dtype=torch.int32),
            )
            angles = torch.empty(256, D // 2)
            positions = Positions(kind, angles, angles, here)
            q = torch.empty(2, HQ, D)
            step = retrieval_attention(q, memory, 3, positions=positions)
        assert step.out.shape == (2, HQ, D) and step.blocks.shape == (2, H, 1 + 3 + 4)

    def test_a_look_at_a_value_would_be_noticed(self) -> None:
        with FakeTensorMode(), pytest.raises(DataDependentOutputException):
            int(torch.zeros(1, dtype=torch.int32).max())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_captured_step_follows_its_inputs(self) -> None:
        made = world([7, 5], last=3)
        memory, q = _moved(made.memory, "cuda"), query(2).cuda()
        eager = retrieval_attention(q, memory, 2)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step = retrieval_attention(q, memory, 2)
        q.copy_(query(2, seed=11))
        graph.replay()
        assert not torch.equal(step.out, eager.out)
        assert torch.equal(step.out, retrieval_attention(q, memory, 2).out)


def _moved(memory: Memory, device: str) -> Memory:
    bank = memory.bank
    assert bank.lengths is not None and memory.table is not None
    return Memory(
        Bank(bank.keys.to(device), bank.values.to(device), bank.lengths.to(device)),
        Summaries(memory.summaries.data.to(device)),
        memory.blocks.to(device),
        memory.table.to(device),
    )
