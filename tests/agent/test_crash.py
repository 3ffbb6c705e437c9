"""Killed between any two steps of a turn: nothing acknowledged is lost, and stores heal."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("crash_script.py")
FIRST = ["The heron nests in March.", "Understood, noted."]
SECOND = "The pelican nests in June."


def test_a_kill_at_any_step_of_a_turn_loses_nothing_acknowledged_and_stores_heal(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=True
    )
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 21
    for step, found in results.items():
        assert found["killed"], f"{step}: the child was not killed there"
        assert found["opens"], f"{step}: the folder does not open again: {done.stderr}"
        assert found["turns"][0] == FIRST, step
        assert found["agrees"], f"{step}: the store disagrees with the ledger"
        assert found["as rebuilt"], f"{step}: the store is not what a rebuild makes"
        heard = [user for user, _ in found["turns"]]
        if step != "before Loop.hear":
            assert heard[1] == SECOND, f"{step}: the message was lost"
            assert any("June" in note for note in found["recalled"]), f"{step}: not recalled"
    assert results["after Traces.put"]["turns"][1] == [SECOND, "Understood, noted."]
