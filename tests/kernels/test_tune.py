"""Tuning, as far as it goes without a GPU: what is chosen from times, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from palimpsest.kernels import configs, tune, tuned
from palimpsest.kernels.configs import Config, choose, trying
from palimpsest.kernels.tune import fastest, main, measured, merged, row_of, written
from palimpsest.kernels.tuned import Bucket, Workload, buckets

CPU = torch.device("cpu")
GPU = "NVIDIA H200"


def cost(config: Config) -> float | None:
    """Of a device that likes tiles of 32, 8 warps and 4 stages; large tiles do not fit."""
    if config.tile > 64:
        return None
    off = abs(config.tile - 32) + 10 * abs(config.warps - 8) + 5 * abs(config.stages - 4)
    return 100 + off - (3 if config.splits == 8 else 0)


class TestTheChoice:
    def test_the_fastest_size_that_runs_is_chosen_then_its_splits(self) -> None:
        choice = fastest("decode", 128, cost)
        assert choice is not None
        assert (choice.config, choice.us) == (Config(32, 8, 4, splits=8), 97)

    def test_splits_that_gain_next_to_nothing_stay_with_the_rule(self) -> None:
        def level(config: Config) -> float:
            return 100 if config.splits is None else 99

        choice = fastest("decode", 64, level)
        assert choice is not None and choice.config.splits is None

    def test_no_tile_is_larger_than_it_may_be(self) -> None:
        tried: list[Config] = []
        fastest("decode", 32, lambda config: tried.append(config))
        assert {config.tile for config in tried} == {16, 32}

    def test_where_nothing_runs_nothing_is_chosen(self) -> None:
        assert fastest("score", 256, lambda config: None) is None


class TestTheFile:
    BUCKET = Bucket("decode", {"D": [65, 128], "B": [1, 2]}, 64, lambda device: [])

    def test_what_is_written_is_what_is_chosen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, best = tmp_path / "configs.json", Config(32, 8, 4, splits=8)
        shipped = configs._rows()
        written(merged(shipped, [row_of(self.BUCKET, GPU, best)], GPU), path)
        monkeypatch.setattr(configs, "_rows", lambda: json.loads(path.read_text()))
        shape = {"D": 128, "B": 1, "bytes": 2, "dot": 2, "rotated": 0}
        assert choose("decode", GPU, shape) == best
        for gpu, letters in ((GPU, shape | {"B": 3}), ("NVIDIA A100", shape)):
            monkeypatch.setattr(configs, "_rows", lambda: shipped)
            before = choose("decode", gpu, letters)
            monkeypatch.setattr(configs, "_rows", lambda: json.loads(path.read_text()))
            assert choose("decode", gpu, letters) == before
        assert len(path.read_text().splitlines()) == len(shipped) + 3, "one row a line"

    def test_measured_again_what_was_measured_before_is_gone(self) -> None:
        old = [{"op": op, "gpu": gpu} for op in ("decode", "score") for gpu in (GPU, "A100", "")]
        new = [{"op": "decode", "gpu": GPU, "tile": 32}]
        kept = merged(old, new, GPU)
        assert kept[0] == new[0] and {"op": "decode", "gpu": GPU} not in kept
        assert {"op": "score", "gpu": GPU} in kept and {"op": "decode", "gpu": "A100"} in kept


class TestWhatIsMeasured:
    @pytest.fixture(autouse=True)
    def a_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tune, "captured", lambda calls: calls[0])
        monkeypatch.setattr(tune, "microseconds", lambda act, count, seconds: [act()])

    def workload(self, us: float, right: bool = True) -> Workload:
        return Workload([lambda: us], lambda result: right)

    def test_times_of_all_workloads_count_alike(self) -> None:
        works = [self.workload(10), self.workload(1000)]
        assert measured("decode", works, Config()) == pytest.approx(100)

    def test_what_is_wrong_has_no_time(self) -> None:
        works = [self.workload(10), self.workload(10, right=False)]
        assert measured("decode", works, Config()) is None

    def test_what_does_not_run_has_no_time(self) -> None:
        def fails() -> object:
            raise RuntimeError("out of resource: shared memory")

        assert measured("decode", [Workload([fails], lambda result: True)], Config()) is None

    def test_the_configuration_that_is_tried_is_the_one_that_counts(self) -> None:
        seen: list[Config] = []

        def call() -> float:
            seen.append(choose("decode", GPU, {"D": 128}))
            return 1.0

        before = choose("decode", GPU, {"D": 128})
        tried = Config(16, 2, 5, splits=4)
        measured("decode", [Workload([call], lambda result: True)], tried)
        assert set(seen) == {tried} and choose("decode", GPU, {"D": 128}) == before

    def test_rows_are_tried_for_a_while_only(self) -> None:
        with pytest.raises(ValueError, match="stop"), trying([{"op": "score", "tile": 16}]):
            assert choose("score", GPU, {}).tile == 16
            raise ValueError("stop")
        assert choose("score", GPU, {"N": 1}).tile != 16


class TestBuckets:
    def test_every_op_has_kinds_of_shape_that_can_be_told_apart(self) -> None:
        rows = [(bucket.op, json.dumps(bucket.where)) for bucket in buckets()]
        assert len(set(rows)) == len(rows)
        assert {op for op, _ in rows} == {"decode", "score", "cosine", "compact", "merge"}
        assert {op for op, _ in rows} == set(tune.TILES)

    @pytest.mark.parametrize(
        "make",
        [
            partial(tuned._decodes, 1, 64, ("plain", "int8", "fp8", "int4"), n=32, s=4),
            partial(tuned._scores, 32, 64, k=4),
            partial(tuned._nearest, torch.int8, n=200),
            partial(tuned._nearest, torch.float16, n=200),
            partial(tuned._compactions, 64, n=64),
            tuned._merges,
        ],
        ids=["decode", "score", "int8 rows", "rows", "compact", "merge"],
    )
    def test_a_workload_knows_what_is_right(
        self, make: Callable[[torch.device], list[Workload]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tuned, "CACHE", 1)
        for work in make(CPU):
            result: Any = work.calls[0]()
            assert len(work.calls) >= 2 and work.right(result)
            wrong = tuple(x * 1.1 if x is not None and x.is_floating_point() else x for x in result)
            assert not work.right(type(result)(*wrong) if hasattr(result, "_make") else wrong)


class TestTheCommand:
    def test_without_a_gpu_it_says_so_and_writes_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert main(["--out", str(tmp_path / "x.json")]) == 2
        assert capsys.readouterr().err == "tuning measures on a GPU, and torch finds none here\n"
        assert not (tmp_path / "x.json").exists()

    def test_with_one_every_bucket_becomes_a_row(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: GPU)
        made = [replace(bucket, make=lambda device: []) for bucket in buckets()]
        monkeypatch.setattr(tune, "buckets", lambda: made)
        monkeypatch.setattr(tune, "measured", lambda op, works, config: cost(config))
        assert main(["--out", str(tmp_path / "x.json"), "--op", "decode", "--op", "merge"]) == 0
        rows = json.loads((tmp_path / "x.json").read_text())
        assert len(rows) == sum(bucket.op in ("decode", "merge") for bucket in made)
        assert rows[0] == {
            "op": "decode",
            "gpu": GPU,
            "where": dict(made[0].where),
            "tile": 32,
            "warps": 8,
            "stages": 4,
            "splits": 8,
        }
