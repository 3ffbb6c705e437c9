"""Killed at any step of a forget: opening the folder again finishes it, and no byte is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from palimpsest.memory.hashing import HashingEmbedder

from .bytescan import left_of
from .forget_crash_script import TOLD, WAYS

SCRIPT = Path(__file__).with_name("forget_crash_script.py")
HERON = TOLD["heron"][0]
EMBEDDER = HashingEmbedder()


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_any_step_of_a_forget_is_made_up_for_when_the_folder_is_opened_again(
    tmp_path: Path, way: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), way],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    ids, steps = told["ids"], told["steps"]
    assert len(steps) == 18
    gone = {name: TOLD[name][0] for name in WAYS[way][1]}
    kept = {text for text, _ in TOLD.values()} - set(gone.values())
    for text in gone.values():
        assert left_of(tmp_path / "begun", EMBEDDER, text), "the scan does not see what is there"
    for step, found in steps.items():
        assert found["killed"], f"{step}: the child was not killed there"
        assert found["opens"], f"{step}: the folder does not open again: {done.stderr}"
        assert found["agrees"], f"{step}: the store disagrees with the ledger"
        assert found["waiting"] == 0, f"{step}: the erasure still waits"
        assert kept <= set(found["said"]), f"{step}: something else is lost"
        assert any(HERON in note for note in found["recalled"]), f"{step}: the rest is lost"
        if step == "before Erasures.note 1":
            assert set(gone.values()) <= set(found["said"]) and found["reports"] == []
            continue
        assert not set(gone.values()) & set(found["said"]), f"{step}: it is still in the ledger"
        [report] = found["reports"]
        named = {name for name, id in ids.items() if id in report["ids"]}
        assert named == gone.keys(), f"{step}: the report is of something else"
        erased_again = step in ("after Erasures.note 1", "before Erasures.erase 1")
        whole = step == "after Erasures.note 2"
        assert report["residue"] == (0 if erased_again or whole else None), step
        assert left_of(Path(found["home"]), EMBEDDER, *gone.values()) == [], step
