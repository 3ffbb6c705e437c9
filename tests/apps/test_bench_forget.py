"""The bench of forgetting, on a scripted model and very few records."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from palimpsest.apps.bench import bulk, forget
from palimpsest.apps.bench.metrics import Spread
from palimpsest.apps.bench.setting import Setting


def test_it_times_every_step_and_counts_what_each_system_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget, "SIZES", (60,))
    monkeypatch.setattr(bulk, "SENTENCES", 100)
    with closing(Setting(seed=0, full=False, data=None, scratch=tmp_path)) as setting:
        timed, left, targets = forget.forget(setting)
    assert [row["system"] for row in timed.rows] == [
        "palimpsest, one record, of 60",
        "palimpsest, of which others say a part, of 60",
        "palimpsest, too short to be searched for, of 60",
    ]
    assert [row["measured"] for row in timed.rows] == [5, 1, 5]
    for row in timed.rows:
        assert isinstance(row["seconds"], Spread)
        steps = [row[step] for step in forget.STEPS]
        assert all(isinstance(step, float) for step in steps)
    assert [row["written anew"] for row in timed.rows] == [False, False, False]
    ours, sqlite, chroma = left.rows
    assert (ours["texts left"], ours["vectors left"], ours["residue in reports"]) == (0, 0, 0)
    for row in (sqlite, chroma):
        assert row["texts left"] or row["vectors left"], "the count sees nothing"
    assert all(row["held"] for row in targets.rows)
