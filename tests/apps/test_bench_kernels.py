"""The bench of the kernels at small sizes: it is right before it is fast, and says what it ran."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from palimpsest.apps.bench import kernel_timing, kernels
from palimpsest.apps.bench.harness import Row, Table, central, run_bench
from palimpsest.apps.bench.kernel_baselines import (
    Unavailable,
    dense_plain,
    dense_sdpa,
    flex_mask,
    gather_plain,
    gather_sdpa,
    varlen,
)
from palimpsest.apps.bench.kernel_cases import Case, Inputs, cases
from palimpsest.apps.bench.kernel_experiments import System, decode, of_case, off
from palimpsest.apps.bench.kernel_side_ops import side_ops
from palimpsest.apps.bench.kernel_timing import Clock, WrongResult
from palimpsest.apps.bench.plot import draw
from palimpsest.kernels import ops, timing
from palimpsest.kernels.base import Attended, Format
from palimpsest.kernels.timing import LEAST

SMALL = Case(b=2, n=512, hq=4, h=2, d=64, p=16, tokens=128, dtype=torch.float32)
CPU = Clock(torch.device("cpu"), seconds=0.0)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def inputs(case: Case = SMALL, clock: Clock = CPU) -> Inputs:
    return Inputs(case, clock, room=1 << 30)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole bench in seconds."""
    some = [SMALL, replace(SMALL, n=1024), replace(SMALL, format="int8")]
    monkeypatch.setattr(kernels, "cases", lambda device, full: iter(some))
    monkeypatch.setattr(
        kernels,
        "side_ops",
        lambda clock, seed, **size: side_ops(clock, seed, small=True, full=False),
    )
    monkeypatch.setattr(kernels, "Clock", lambda device: replace(CPU, device=device))
    monkeypatch.setattr(kernel_timing, "COPIED", 1 << 20)
    monkeypatch.setattr(kernel_timing, "CPU_CACHE", 1 << 12)


class TestTheWholeBench:
    def test_it_is_right_says_that_it_ran_on_a_cpu_and_keeps_every_point(
        self, small: None, tmp_path: Path
    ) -> None:
        report = run_bench("kernels")
        titles = [table.title for table in report.tables]
        assert titles[:2] == ["is it right", "what the device can do"]
        assert titles[2:8] == list(kernels.TITLES.values()) and titles[-1] == "what holds"
        right, *measured = report.tables
        assert all(central(row["error"]) <= central(row["limit"]) for row in right.rows)
        if not torch.cuda.is_available():
            assert all("on a CPU" in table.note for table in measured[:7])
        path = report.save(tmp_path)
        points = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
        assert len(points) == sum(len(table.points) for table in report.tables)
        wanted = {"op", "system", "n", "us", "us low", "us high", "GB/s", "of copy", "torch"}
        assert wanted <= points[0].keys() and points[0]["system"] == "ours"
        assert path.with_suffix(".png").exists()
        for table in report.tables:
            for point in table.points:
                assert ("us" in point) != ("note" in point), "timed, or says why not"

    def test_what_is_wrong_is_not_timed(self, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
        real = ops.gather_decode

        def slightly_off(*args: Any, **options: Any) -> Attended:
            return real(*args, **options)._replace(out=real(*args, **options).out * 1.01)

        monkeypatch.setattr(ops, "gather_decode", slightly_off)
        shown: list[Table] = []
        with pytest.raises(WrongResult, match=r"decode on .* is off by"):
            run_bench("kernels", show=shown.append)
        assert not shown

    def test_a_baseline_that_is_wrong_or_not_there_is_named_and_not_timed(self) -> None:
        def nowhere() -> Any:
            raise Unavailable("not on this machine")

        made = decode(inputs())
        zero = System(lambda: [lambda: torch.zeros(2, 4, 64)] * 2, made.ours["ours"].error)
        broken = replace(made, others={"zero": zero, "nowhere": System(nowhere)})
        ours, wrong, absent = kernels.measured(broken, CPU)
        assert "us" in ours and "us" not in wrong and "us" not in absent
        assert wrong["note"] == "wrong; not timed" and central(wrong["error"]) > 0.5
        assert absent["note"] == "not run: not on this machine"


class TestBaselines:
    @pytest.mark.parametrize("make", [gather_sdpa, gather_plain])
    def test_what_copies_first_reads_the_same(self, make: Callable[[Inputs], Any]) -> None:
        made = inputs()
        error = decode(made).ours["ours"].error
        assert error is not None and error(make(made)[0]()) <= 1e-5

    @pytest.mark.parametrize(
        "make", [dense_sdpa, lambda made: dense_sdpa(made, grouped=True), dense_plain]
    )
    def test_what_reads_everything_is_what_a_selection_of_everything_is(
        self, make: Callable[[Inputs], Any]
    ) -> None:
        made = inputs(replace(SMALL, tokens=SMALL.n))
        ours = decode(made).ours["ours"].calls()[0]()
        assert isinstance(ours, Attended)
        assert off(make(made)[0]().reshape(2, 4, 64), ours.out) <= 1e-5

    @pytest.mark.parametrize("shared", [False, True])
    def test_flex_attention_is_masked_to_the_selection(self, shared: bool) -> None:
        made = inputs()
        ids = made.ids[0]
        blocks = flex_mask(made, ids, shared).to_dense()[:, :, 0].bool()
        for b in range(SMALL.b):
            for head in range(blocks.shape[1]):
                row = ids[b, 0 if shared else head // 2] - b * SMALL.blocks
                assert sorted(row.tolist()) == blocks[b, head].nonzero().flatten().tolist()

    def test_what_a_cpu_does_not_have_says_so(self) -> None:
        with pytest.raises(Unavailable, match="for CUDA"):
            varlen(inputs())
        with pytest.raises(Unavailable, match="2 banks do not fit"):
            dense_sdpa(Inputs(SMALL, CPU, room=SMALL.bank_bytes))

    @GPU
    @pytest.mark.parametrize("p", [64, 256])
    def test_whatever_runs_on_a_gpu_is_right(self, p: int) -> None:
        case = Case(b=2, n=16_384, hq=8, h=2, p=p)
        clock = Clock(torch.device("cuda"), seconds=0.0)
        for experiment in of_case(inputs(case, clock)):
            for point in kernels.measured(experiment, clock):
                assert point.get("note") != "wrong; not timed", point


class TestCases:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    @pytest.mark.parametrize("full", [False, True])
    def test_every_case_has_enough_blocks_and_room_for_sinks_and_window(
        self, device: str, full: bool
    ) -> None:
        made = list(cases(device, full))
        assert all(5 < case.selected <= case.blocks for case in made)
        assert all(case.hq % case.h == 0 for case in made)
        assert min(case.n for case in made) < 8192, "losses are looked for"
        if device == "cuda" and full:
            assert len(made) >= 3 * 3 * 4 * 4 * 4

    @pytest.mark.parametrize("form", ["plain", "int8", "fp8", "int4"])
    def test_bytes_are_those_that_are_stored(self, form: Format) -> None:
        made = inputs(replace(SMALL, format=form))
        names = ("keys", "values", "key_scale", "value_scale", "key_zero", "value_zero")
        tensors = [getattr(made.bank, name) for name in names]
        stored = sum(x.nbytes for x in tensors if x is not None)
        assert stored == SMALL.b * made.case.bank_bytes

    def test_a_selection_stays_among_the_sequences_own_blocks(self) -> None:
        made = inputs()
        for ids in made.ids:
            assert (ids // SMALL.blocks == torch.arange(2)[:, None, None]).all()
            assert all(len(set(row)) == len(row) for row in ids.flatten(0, 1).tolist())

    def test_what_is_read_in_turn_is_more_than_the_cache_holds(self) -> None:
        for moved in (1 << 20, 1 << 24, 1 << 30):
            rotations = CPU.rotations(moved, most=1000)
            assert rotations >= 2 and rotations * moved > 4 * CPU.cache_bytes


class TestTheClock:
    """The way of a GPU, with events that count instead of it."""

    @pytest.fixture
    def on_gpu(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        done: list[str] = []

        class Event:
            at = count()

            def record(self) -> None:
                self.when = next(Event.at)

            def synchronize(self) -> None:
                done.append("waited")

            def elapsed_time(self, other: Event) -> float:
                return 0.006 * (other.when - self.when)

        monkeypatch.setattr(Clock, "cuda", True)
        monkeypatch.setattr(timing, "_event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        return done

    def test_without_a_graph_all_calls_are_one_sample(self, on_gpu: list[str]) -> None:
        calls = [lambda: on_gpu.append("a"), lambda: on_gpu.append("b")]
        found = replace(CPU, graph=False).time(calls)
        assert found.how == "eager" and found.us.median == pytest.approx(3)
        assert on_gpu == ["a", "b"] + ["a", "b", "waited"] * LEAST

    def test_a_graph_is_replayed(self, on_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        replay = lambda: on_gpu.append("replayed")  # noqa: E731
        monkeypatch.setattr(kernel_timing, "captured", lambda calls: replay)
        found = CPU.time([lambda: None] * 3)
        assert found.how == "graph" and found.us.median == pytest.approx(2)
        assert found.eager is not None and on_gpu.count("replayed") == LEAST

    def test_what_cannot_be_captured_is_timed_as_it_is(
        self, on_gpu: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuses(calls: object) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(kernel_timing, "captured", refuses)
        assert CPU.time([lambda: None]).how == "eager"

    def test_on_a_cpu_each_call_is_a_sample(self) -> None:
        done: list[int] = []
        found = CPU.time([lambda: done.append(0), lambda: done.append(1)])
        assert found.how.endswith(" threads") and found.us.n == LEAST
        once = [at % 2 for at in range(LEAST)]
        assert done in ([0, 1, *once, *once], [0, 1, *once])


def test_lines_are_drawn_over_a_logarithmic_axis(tmp_path: Path) -> None:
    points: list[Row] = [{"system": "ours", "MB": 2.0**n, "of copy": 0.1 * n} for n in range(4)]
    points.append({"system": "theirs", "note": "not run"})
    table = Table(title="t", rows=points, points=points, curve=("MB", "of copy"))
    draw([table], tmp_path / "x.png", title="t")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_an_error_of_nan_is_beyond_every_limit() -> None:
    assert off(torch.tensor([math.nan]), torch.tensor([1.0])) == math.inf
