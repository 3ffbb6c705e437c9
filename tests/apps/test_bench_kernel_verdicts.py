"""What the kernels' bench makes of its points: the bars, and retrieval beside dense attention."""

from __future__ import annotations

from typing import Any

import pytest
from palimpsest.apps.bench import kernel_verdicts
from palimpsest.apps.bench.harness import Row
from palimpsest.apps.bench.metrics import Spread


def point(op: str, system: str = "ours", us: float = 10.0, **columns: Any) -> Row:
    default: dict[str, Any] = {
        "case": "c",
        "format": "plain",
        "b": 8,
        "n": 1 << 20,
        "hq": 32,
        "h": 8,
        "d": 128,
    }
    default |= {"p": 64, "tokens": 2048, "how": "graph", "MB": 300.0, "of copy": 0.9}
    spread = Spread(us, us, us, 1)
    made: dict[str, Any] = (
        {"system": system, "op": op, "us": spread, "error": 0.0} | default | columns
    )
    return made


class TestVerdicts:
    GOOD = (
        point("score", MB=300),
        point("score", "matmul + torch.topk", 40),
        point("decode"),
        point("decode", case="d", MB=64),
        point("decode", "A gather + SDPA", 27),
        point("decode", "C FlexAttention, one selection", 16),
        point("decode", "D varlen_attn, paged", 12),
        point("decode", "F SDPA over everything", 95, MB=3000),
        point("decode", case="int8", format="int8", us=5),
        point("decode", case="fp8", format="fp8", us=5),
        point("decode", case="int4", format="int4", us=3),
        point("step", us=20),
        point("step", case="one", us=15, b=1),
        point("cosine", b=32, d=768, dtype="float16"),
        point("cosine", b=32, d=768, dtype="int8"),
    )

    def test_bars_are_reached_by_what_is_beyond_them(self) -> None:
        rows = kernel_verdicts.verdicts(self.GOOD, "cuda")
        missed = [row["check"] for row in rows if not row["reached"]]
        assert not missed and len(rows) == 14

    def test_bars_are_missed_by_what_is_below_them_and_by_nothing_at_all(self) -> None:
        slow = [
            {**row, "us": Spread(500, 500, 500, 1), "of copy": 0.1}
            if row["system"] == "ours" and row["format"] == "plain"
            else {**row, "of copy": 0.1}
            for row in self.GOOD
        ]
        for points in (slow, []):
            rows = kernel_verdicts.verdicts(points, "cuda")
            held = [row["check"] for row in rows if row["held"]]
            assert all("than bfloat16" in str(check) for check in held)
        assert all(row["measured"] is None for row in kernel_verdicts.verdicts([], "cuda"))

    def test_a_cpu_is_held_to_twenty_times_at_the_largest_bank(self) -> None:
        dense = point("decode", "F the same, enable_gqa", 190)
        rows = [point("decode"), point("decode", "A gather + SDPA"), dense]
        ratio, *errors = kernel_verdicts.verdicts(rows, "cpu")
        assert ratio["measured"] == 19 and not ratio["held"]
        assert len(errors) == 2 and all(row["held"] for row in errors)

    def test_dense_attention_counts_in_its_fastest_form(self) -> None:
        [row] = kernel_verdicts.beside_dense(
            [*self.GOOD, point("decode", "F plain torch over everything", 80, MB=3000)]
        ).rows
        assert row["attention: times faster"] == 8 and row["by bytes"] == 10
        assert row["step: times faster"] == 4 and row["step by bytes"] == 5
        assert row["efficiency"] == pytest.approx(0.8)
