"""Storage formats by themselves: codes, groups and tails, and what each loses."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.errors import ConfigError, UnknownName
from palimpsest.kernels import bits as codes
from palimpsest.kernels.rotary import rotate, table
from palimpsest.memory.retention.formats.gear import Gear, ends, low_rank
from palimpsest.memory.retention.formats.packed import PackedStorage
from palimpsest.memory.retention.formats.quantized import ByChannel, ByToken, channels
from palimpsest.memory.retention.formats.registry import FORMATS, open_format
from palimpsest.memory.retention.formats.think import pairs
from safetensors.torch import load, save
from torch import Tensor

PACKED = ("int8", "int4", "int2", "gear:block=128", "gear:bits=4,outliers=0,block=64", "think")


def text(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Keys or values [B, H, S, D], some channels larger than others, as a model's are."""
    drawn = torch.Generator().manual_seed(seed)
    size = torch.rand(shape[1], 1, shape[3], generator=drawn).exp().square()
    return (torch.randn(*shape, generator=drawn) * size).to(dtype)


def storage(spec: str, pairing: Any = "half", width: int = 64, **options: int) -> PackedStorage:
    made = open_format(spec, **options).storage(pairing, width)
    return cast(PackedStorage, made)


def filled(spec: str, keys: Tensor, values: Tensor, **options: int) -> PackedStorage:
    made = storage(spec, **options)
    made.append(keys, values)
    made.settle()
    return made


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative, of all numbers together."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


class TestCodes:
    @given(
        bits=st.sampled_from([2, 4, 8]),
        rows=st.integers(1, 5),
        width=st.integers(1, 9),
        seed=st.integers(0, 2**31),
    )
    def test_codes_come_out_of_their_bytes_as_they_went_in(
        self, bits: int, rows: int, width: int, seed: int
    ) -> None:
        drawn = torch.Generator().manual_seed(seed)
        shape = (rows, width * (8 // bits))
        given = torch.randint(2**bits, shape, generator=drawn).to(torch.uint8)
        stored = codes.packed(given, bits)
        assert stored.shape == (rows, width)
        assert torch.equal(codes.unpacked(stored, bits), given)

    @given(
        bits=st.sampled_from([2, 4, 8]),
        by_token=st.booleans(),
        size=st.floats(-3, 3),
        shift=st.floats(-50, 50),
        seed=st.integers(0, 2**31),
    )
    def test_no_number_is_off_by_more_than_half_a_step(
        self, bits: int, by_token: bool, size: float, shift: float, seed: int
    ) -> None:
        drawn = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 2, 1, 32, 16, generator=drawn) * 10**size + shift
        codec = ByToken(bits) if by_token else ByChannel(bits, 16)
        parts = codec.encode(x, {})
        found = codec.decode(parts, {})
        step = parts["scale"].float()
        step = step.expand(x.shape) if by_token else step.repeat_interleave(16, dim=3)
        # Scales and zeros are float16, so both ends of a group are rounded, too.
        rounding = 2**-10 * x.abs().amax() + 2**-10 * step * 2**bits
        assert bool(((found - x).abs() <= step / 2 + rounding).all())

    def test_a_constant_channel_is_kept_and_is_no_division_by_zero(self) -> None:
        x = torch.full((1, 1, 1, 64, 8), 3.25)
        for codec in (ByChannel(2, 64), ByToken(2)):
            assert torch.equal(codec.decode(codec.encode(x, {}), {}), x)

    def test_a_value_shares_its_scale_with_64_channels_or_all_it_has(self) -> None:
        assert [channels(dim) for dim in (16, 64, 80, 96, 128)] == [16, 64, 40, 48, 64]

    def test_channels_that_do_not_fill_bytes_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="D=6; 2 bits need a multiple of 4"):
            filled("int2", text(1, 1, 200, 6), text(1, 1, 200, 6), width=6)


@pytest.mark.parametrize("spec", PACKED)
class TestEveryFormat:
    def test_what_is_newest_stays_as_it_was_and_groups_are_packed_when_full(
        self, spec: str
    ) -> None:
        unit = {"gear:block=128": 128}.get(spec, 64)
        keys, values = text(2, 3, unit + 33, 64), text(2, 3, unit + 33, 64, seed=1)
        for length, packed in ((unit + 31, 0), (unit + 32, unit), (unit + 33, unit)):
            held = filled(spec, keys[:, :, :length], values[:, :, :length], residual=32)
            assert held.packed == packed
            assert torch.equal(held.keys()[:, :, packed:], keys[:, :, packed:length])
            assert torch.equal(held.values()[:, :, packed:], values[:, :, packed:length])
            assert held.keys().shape == held.values().shape == (2, 3, length, 64)

    def test_packing_as_the_text_comes_is_packing_it_at_its_end(self, spec: str) -> None:
        keys, values = text(1, 2, 576, 64), text(1, 2, 576, 64, seed=1)
        q = text(1, 4, 576, 64, seed=2)
        slowly = storage(spec, residual=64)
        for at in range(0, 576, 48):
            some = slice(at, at + 48)
            slowly.append(keys[:, :, some], values[:, :, some])
            slowly.asked(q[:, :, some])
            if spec != "think" or at == 528:  # its first packing decides
                slowly.settle()
        at_once = storage(spec, residual=64)
        at_once.append(keys, values)
        at_once.asked(q)
        at_once.settle()
        assert slowly.packed == at_once.packed == 512
        assert torch.equal(slowly.keys(), at_once.keys())
        assert torch.equal(slowly.values(), at_once.values())

    def test_a_file_brings_it_back_bit_for_bit(self, spec: str) -> None:
        held = filled(spec, text(2, 2, 330, 64), text(2, 2, 330, 64, seed=1))
        anew = storage(spec)
        anew.restore(load(save({name: x.contiguous() for name, x in held.state().items()})))
        more = text(2, 2, 300, 64, seed=3)
        for each in (held, anew):
            each.append(more, more)
            each.settle()
        assert torch.equal(anew.keys(), held.keys()) and torch.equal(anew.values(), held.values())
        assert anew.nbytes == held.nbytes and anew.packed == held.packed

    def test_queries_that_still_have_to_be_seen_are_part_of_what_is_saved(self, spec: str) -> None:
        held, anew = storage(spec), storage(spec)
        held.append(text(1, 2, 80, 64), text(1, 2, 80, 64))
        held.asked(text(1, 4, 80, 64, seed=5))
        anew.restore(load(save({name: x.contiguous() for name, x in held.state().items()})))
        for each in (held, anew):
            each.append(text(1, 2, 300, 64, seed=7), text(1, 2, 300, 64))
            each.settle()
        assert torch.equal(anew.keys(), held.keys())

    def test_a_copy_goes_on_by_itself(self, spec: str) -> None:
        held = filled(spec, text(1, 2, 330, 64), text(1, 2, 330, 64))
        keys, copy = held.keys().clone(), held.copy()
        copy.append(text(1, 2, 256, 64), text(1, 2, 256, 64))
        copy.settle()
        copy.keep(torch.arange(0, 500, 2)[None])
        assert torch.equal(held.keys(), keys)

    def test_rows_are_packed_each_by_itself(self, spec: str) -> None:
        keys, values = text(3, 2, 330, 64), text(3, 2, 330, 64, seed=1)
        held = filled(spec, keys, values)
        held.rows_of(torch.tensor([2, 0]))
        for row, source in enumerate((2, 0)):
            alone = filled(spec, keys[source, None], values[source, None])
            torch.testing.assert_close(held.keys()[row, None], alone.keys(), atol=1e-3, rtol=0)
            torch.testing.assert_close(held.values()[row, None], alone.values(), atol=1e-3, rtol=0)

    def test_only_what_stands_behind_the_first_dropped_token_is_unpacked(self, spec: str) -> None:
        held = filled(spec, text(2, 2, 330, 64), text(2, 2, 330, 64))
        before = held.keys().clone()
        index = torch.stack([torch.arange(330), torch.arange(330)])
        first = torch.cat([index[:, :140], index[:, 150:]], dim=1)
        second = torch.cat([index[1:, :260], index[1:, 270:]], dim=1)
        first[1] = second[0]  # rows may lose different tokens
        held.keep(first)
        assert held.packed == 128
        wanted = before.gather(2, first[:, None, :, None].expand(-1, 2, -1, 64))
        assert torch.equal(held.keys(), wanted)

    def test_it_can_be_cut_inside_a_group(self, spec: str) -> None:
        held = filled(spec, text(1, 2, 330, 64), text(1, 2, 330, 64))
        before = held.values().clone()
        held.cut(150)
        assert torch.equal(held.values(), before[:, :, :150])
        held.cut(0)
        assert held.values().shape == (1, 2, 0, 64)

    def test_bfloat16_is_packed_from_float32_and_given_back_as_bfloat16(self, spec: str) -> None:
        keys, values = text(1, 2, 330, 64), text(1, 2, 330, 64, seed=1)
        keys, values = keys.bfloat16(), values.bfloat16()
        held, exact = filled(spec, keys, values), filled(spec, keys.float(), values.float())
        assert held.keys().dtype == held.values().dtype == torch.bfloat16
        assert torch.equal(held.keys(), exact.keys().bfloat16())

    def test_it_takes_less_room_than_it_would_plain(self, spec: str) -> None:
        keys = text(1, 2, 576, 64).bfloat16()
        held = filled(spec, keys, keys)
        assert held.nbytes < 0.9 * 2 * keys.numel() * 2


def bits_each(spec: str, tokens: int = 1024, dim: int = 64, **options: int) -> float:
    """Bits of a number, of what is packed only."""
    keys = text(1, 3, tokens, dim).bfloat16()
    return filled(spec, keys, keys, residual=0, **options).nbytes * 8 / (2 * keys.numel())


def test_bits_of_a_number_are_those_that_are_worked_out_by_hand() -> None:
    scales = 2 * 16 / 64
    assert bits_each("int8") == 8 + scales
    assert bits_each("int4") == 4 + scales
    assert bits_each("int2", dim=128, width=128) == 2 + scales
    factors = 16 * 4 / 64 + 16 * 4 / 256
    keys, values = 24 * 2 * 3 / 256, 24 * 2 * 1 / 64  # an index and a number, at both ends
    assert bits_each("gear:outliers=0") == 2 + scales + factors
    assert bits_each("gear") == 2 + scales + factors + (keys + values) / 2
    mask = 8 / (2 * 1024)
    kept = 2 * (32 - 13) / 64
    assert bits_each("think") == pytest.approx(16 * (kept + 1) / 2 + mask)


def test_what_leaves_the_tail_leaves_memory_too() -> None:
    held = filled("int4", text(1, 1, 1024, 64), text(1, 1, 1024, 64))
    for side in held._sides:
        assert side.tail.room is not None and side.tail.room.shape[2] == 64


class TestAccuracy:
    def test_more_bits_are_better_and_so_is_a_repair(self) -> None:
        keys, values = text(1, 2, 1024, 64), text(1, 2, 1024, 64, seed=1)
        specs = ("int8", "int4", "gear:bits=2", "gear:bits=2,outliers=0", "int2")
        lost = [error(filled(spec, keys, values, residual=0).keys(), keys) for spec in specs]
        assert lost == sorted(lost) and lost[0] < 0.01 and lost[1] < 0.1

    def test_keys_by_channel_lose_less_than_keys_by_token(self) -> None:
        keys = text(1, 2, 512, 64)
        keys[..., 7] += 60.0  # as a model's keys are: one channel large in every token
        held = filled("int4", keys, keys, residual=0)
        others = [channel for channel in range(64) if channel != 7]
        by_channel, by_token = held.keys()[..., others], held.values()[..., others]
        assert error(by_channel, keys[..., others]) < 0.5 * error(by_token, keys[..., others])

    def test_encoding_again_when_tokens_leave_adds_little_error(self) -> None:
        """Every packing of shifted groups rounds anew; the drift is that of a random walk."""
        keys = text(1, 2, 1024, 64)
        for spec, most in (("int8", 3.0), ("int4", 3.0), ("think", 1.0)):
            held = filled(spec, keys, keys, residual=0)
            once, kept = error(held.keys(), keys), torch.arange(1024)
            for turn in range(8):
                index = torch.cat([torch.arange(4), torch.arange(13, len(kept))])
                kept = kept[index]
                held.keep(index[None])
                held.settle()
                assert held.packed == len(kept) // 64 * 64, turn
            assert error(held.keys(), keys[:, :, kept]) <= most * once * 1.01
            if spec != "think":
                assert error(held.keys(), keys[:, :, kept]) > once


class TestGear:
    @given(rank=st.integers(1, 6), seed=st.integers(0, 1000))
    @settings(deadline=None)
    def test_power_iteration_comes_close_to_the_best_product_of_its_rank(
        self, rank: int, seed: int
    ) -> None:
        x = text(1, 2, 64, 32, seed=seed)
        left, right = low_rank(x, rank, seed=0)
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        best = u[..., :rank] * s[..., None, :rank] @ v[..., :rank, :]
        assert float((left @ right.mT - x).norm() / (best - x).norm()) < 1.1

    def test_it_is_the_same_every_time_whatever_else_was_drawn(self) -> None:
        x = text(1, 2, 64, 32)
        first = low_rank(x, 3, seed=0)
        torch.rand(5)
        assert all(torch.equal(a, b) for a, b in zip(first, low_rank(x, 3, seed=0), strict=True))

    def test_nothing_missing_is_a_product_of_zeros(self) -> None:
        left, right = low_rank(torch.zeros(1, 1, 64, 32), 3, seed=0)
        assert not bool((left @ right.mT).any())

    def test_a_reads_factors_may_be_multiplied_in_either_order(self) -> None:
        left, right = low_rank(text(1, 1, 64, 32), 4, seed=0)
        q = text(1, 1, 5, 32, seed=1)
        torch.testing.assert_close((q @ right) @ left.mT, q @ (left @ right.mT).mT)

    def test_outliers_are_counted_along_their_own_vector(self) -> None:
        assert [ends(n, 0.02) for n in (64, 128, 256)] == [1, 1, 3]
        assert ends(256, 0) == 0

    def test_one_huge_number_does_not_cost_the_others(self) -> None:
        keys = text(1, 1, 256, 64)
        keys[0, 0, 100, 5] = 500.0
        plain = filled("int4", keys, keys, residual=0).keys()
        repaired = filled("gear:bits=4,rank=0", keys, keys, residual=0).keys()
        others = torch.ones_like(keys).bool()
        others[0, 0, 100, 5] = False
        channel = keys[..., 5][others[..., 5]]
        assert error(repaired[..., 5][others[..., 5]], channel) < 0.1
        assert error(plain[..., 5][others[..., 5]], channel) > 0.3
        assert repaired[0, 0, 100, 5] == 500.0


class TestThink:
    @pytest.mark.parametrize(
        ("pairing", "width"), [("half", 64), ("interleaved", 64), ("half", 32)]
    )
    def test_rotation_never_mixes_what_is_kept_with_what_is_not(
        self, pairing: Any, width: int
    ) -> None:
        keys, q = text(1, 2, 160, 64), text(1, 4, 160, 64, seed=1)
        held = storage("think", pairing, width)
        held.append(keys, keys)
        held.asked(q)
        held.settle()
        mask = held.keys()[:, :, 0] != 0
        cos, sin = table(10_000.0 ** -torch.arange(0, 1, 2 / width), torch.arange(160))

        def turned(x: Tensor) -> Tensor:
            rotated = rotate(x[..., :width], cos, sin, pairing)
            return torch.cat([rotated, x[..., width:]], dim=-1)

        zero_filled = held.keys()[:, :, : held.packed]
        query = q[:, ::2]
        whole = turned(query) @ turned(held.keys()).mT
        narrow = turned(query * mask[:, :, None]) @ turned(held.keys()).mT
        torch.testing.assert_close(narrow[..., : held.packed], whole[..., : held.packed])
        assert bool((zero_filled[~mask[:, :, None].expand(zero_filled.shape)] == 0).all())
        in_pairs = mask[..., pairs(pairing, width, 64)]
        assert torch.equal(in_pairs[..., 0], in_pairs[..., 1])

    def test_it_keeps_what_queries_of_all_a_heads_query_heads_ask_for(self) -> None:
        keys, q = torch.ones(1, 1, 160, 8), torch.zeros(1, 2, 160, 8)
        q[:, 0, :, 1], q[:, 1, :, 6] = 1.0, 2.0
        held = storage("think:drop=0.5", width=8)
        held.append(keys, keys)
        held.asked(q)
        held.settle()
        assert held.keys()[0, 0, 0].tolist() == [0, 1, 1, 0, 0, 1, 1, 0]

    def test_only_the_last_queries_before_the_first_packing_count(self) -> None:
        keys, q = torch.ones(1, 1, 160, 8), torch.zeros(1, 1, 160, 8)
        q[:, :, :128, 0], q[:, :, 128:, 3] = 9.0, 0.1
        held = storage("think:drop=0.75", width=8)
        held.append(keys, keys)
        for at in range(0, 160, 20):
            held.asked(q[:, :, at : at + 20])
        held.settle()
        chosen = [0, 0, 0, 1, 0, 0, 0, 1]
        assert held.keys()[0, 0, 0].tolist() == chosen
        held.append(keys, keys)
        held.asked(q.flip(2))
        held.settle()
        assert held.keys()[0, 0, 200].tolist() == chosen

    def test_tokens_that_were_taken_back_have_no_say(self) -> None:
        keys, q = torch.ones(1, 1, 100, 8), torch.zeros(1, 1, 120, 8)
        q[:, :, 80:100, 3], q[:, :, 100:, 0] = 1.0, 9.0
        held = storage("think:drop=0.75", width=8)
        held.append(torch.ones(1, 1, 120, 8), torch.ones(1, 1, 120, 8))
        held.asked(q)
        held.cut(100)
        held.settle()
        assert held.keys()[0, 0, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
        assert held.keys().shape == keys.shape


class TestRegistry:
    def test_every_row_leads_to_a_format_of_that_name(self) -> None:
        assert {name: open_format(name).name for name in FORMATS} == {
            name: name for name in ("plain", "int8", "int4", "int2", "gear", "think")
        }

    def test_a_spec_sets_options(self) -> None:
        form = open_format("gear:bits=4,rank=2", residual=16)
        assert form == Gear(bits=4, rank=2, residual=16) and form.stride == 64

    def test_an_unknown_format_lists_those_there_are(self) -> None:
        with pytest.raises(UnknownName, match="gear, int2, int4, int8, plain, think"):
            open_format("int3")

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("int4:bits=3", "format 'int4' has no option 'bits'"),
            ("int4:group=0", "int4: group=0 must be at least 1"),
            ("int4:residual=-1", "int4: residual=-1 must be at least 0"),
            ("int4:stride=-64", "int4: stride=-64 must be at least 1"),
            ("gear:bits=3", "gear: bits=3 must be one of"),
            ("gear:block=100", "gear: block=100 must be a multiple of group=64"),
            ("gear:rank=-1", "gear: rank=-1 must be at least 0"),
            ("gear:outliers=0.7", "gear: outliers=0.7 must be from 0 to below 0.5"),
            ("think:drop=1", "think: drop=1 must be from 0 to below 1"),
            ("think:by=luck", "think: by='luck' must be one of"),
        ],
    )
    def test_an_option_that_makes_no_sense_is_named(self, spec: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            open_format(spec)
