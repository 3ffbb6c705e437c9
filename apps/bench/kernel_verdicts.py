"""What the points say: retrieval beside dense attention, and the bars that were set beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from .harness import Row, Table, central
from .scm import at_least

SDPA = ("F SDPA over everything", "F the same, enable_gqa")
"""Dense attention by SDPA, in two forms of which the faster counts."""

DENSE = (*SDPA, "F plain torch over everything")

MILLION = 1 << 20


def of(points: Sequence[Row], op: str, system: str = "ours", **columns: object) -> list[Row]:
    """Timed points of an op and a system whose columns are so."""
    return [
        point
        for point in points
        if (point["op"], point["system"]) == (op, system)
        and "us" in point
        and all(point.get(name) == value for name, value in columns.items())
    ]


def us(points: Sequence[Row], op: str, case: object, *systems: str) -> float | None:
    """Microseconds of the fastest of some systems on a case; None if none was timed."""
    found = [central(x["us"]) for name in systems for x in of(points, op, name, case=case)]
    return min(found, default=None)


def beside_dense(points: Sequence[Row]) -> Table:
    """How many times faster than dense attention over everything, and of that how much is due to
    reading less."""
    rows: list[Row] = []
    for point in of(points, "decode", format="plain"):
        case = point["case"]
        dense, step = us(points, "decode", case, *DENSE), us(points, "step", case, "ours")
        every = [x for name in DENSE for x in of(points, "decode", name, case=case)]
        if dense is None or step is None:
            continue
        read = central(point["MB"])
        whole = read + central(of(points, "score", case=case)[0]["MB"])
        bytes_ratio = central(every[0]["MB"]) / whole
        rows.append(
            {
                "case": case,
                "attention: times faster": dense / central(point["us"]),
                "by bytes": central(every[0]["MB"]) / read,
                "step: times faster": dense / step,
                "step by bytes": bytes_ratio,
                "efficiency": dense / step / bytes_ratio,
            }
        )
    return Table(
        title="beside dense attention over everything, in its fastest form",
        rows=rows or [{"case": "dense attention fits nowhere"}],
        note="below 1, dense attention is faster; efficiency: the speed-up of the step as a share"
        " of what it reads less",
        plot=("attention: times faster", "step: times faster") if rows else (),
    )


def verdicts(points: Sequence[Row], device: str) -> list[Row]:
    """The bars, each with what was measured."""
    return _on_gpu(points) if device == "cuda" else _on_cpu(points)


def _on_cpu(points: Sequence[Row]) -> list[Row]:
    largest = max(of(points, "decode", format="plain"), key=lambda point: central(point["n"]))
    case, tokens = largest["case"], largest["tokens"]
    sdpa = us(points, "decode", case, *SDPA)
    assert sdpa is not None
    rows = [
        at_least(
            f"{tokens} of {largest['n']:,} tokens: times faster than SDPA over all",
            sdpa / central(largest["us"]),
            20,
        )
    ]
    for name in ("ours", "A gather + SDPA"):
        [point] = of(points, "decode", name, case=case)
        error = central(point["error"])
        rows.append(
            {
                "check": f"the selection in float64: {name}",
                "measured": error,
                "target": "<= 1e-05",
                "held": error <= 1e-5,
            }
        )
    return rows


def _on_gpu(points: Sequence[Row]) -> list[Row]:
    rows = [
        _bar("score, of copy, from 64 MB", _fractions(points, "score", 64), 0.70, 0.85),
        _bar(
            "score: times faster than matmul + topk",
            _ratios(points, "score", "matmul + torch.topk", 64),
            None,
            3.0,
        ),
        _bar("decode, of copy, from 256 MB", _fractions(points, "decode", 256), 0.75, 0.88),
        _bar("decode, of copy, 48 to 96 MB", _fractions(points, "decode", 48, 96), 0.60, 0.75),
    ]
    for name, good, best in (
        ("A gather + SDPA", 2.0, 2.6),
        ("C FlexAttention, one selection", 1.2, 1.5),
        ("D varlen_attn, paged", 1.0, 1.1),
    ):
        rows.append(
            _bar(
                f"decode: times faster than {name}", _ratios(points, "decode", name, 48), good, best
            )
        )
    beside = {row["case"]: row for row in beside_dense(points).rows if "efficiency" in row}
    efficient = [
        central(beside[point["case"]]["efficiency"])
        for point in of(points, "step")
        if central(point["b"]) >= 8 and point["case"] in beside
    ]
    rows.append(_bar("step, B from 8: efficiency", efficient, 0.7, 0.9))
    once = of(points, "step", b=1, n=MILLION, hq=32, h=8, d=128, p=64, tokens=2048, how="graph")
    times = [central(point["us"]) for point in once]
    rows.append(_bar("step, B=1, 1M tokens, graph: us", times, 25, 16, least=False))
    for dtype, best in (("float16", 0.85), ("int8", 0.80)):
        nearest = [central(x["of copy"]) for x in of(points, "cosine", b=32, d=768, dtype=dtype)]
        rows.append(_bar(f"nearest rows, B=32, {dtype}: of copy", nearest, 0.75, best))
    for form in ("int8", "fp8"):
        rows.append(_bar(f"{form}: times faster than bfloat16", _smaller(points, form), 1.6, 1.85))
    rows.append(_bar("int4: times faster than bfloat16", _smaller(points, "int4"), None, 2.8))
    return rows


def _bar(
    check: str,
    found: Sequence[float],
    good: float | None,
    best: float,
    *,
    least: bool = True,
) -> Row:
    """The median of what was found beside two bars, at least or at most; not held, if nothing
    was."""
    value = median(found) if found else None

    def reaches(bar: float) -> bool:
        return value is not None and (value >= bar if least else value <= bar)

    return {
        "check": check,
        "measured": value,
        "cases": len(found),
        "good": good,
        "held": reaches(best if good is None else good),
        "state of the art": best,
        "reached": reaches(best),
    }


def _fractions(points: Sequence[Row], op: str, low: float, high: float = 1e9) -> list[float]:
    plain = of(points, op, format="plain")
    return [central(x["of copy"]) for x in plain if low <= central(x["MB"]) <= high]


def _ratios(points: Sequence[Row], op: str, system: str, low: float) -> list[float]:
    found = []
    for point in of(points, op, system):
        ours = us(points, op, point["case"], "ours")
        if ours is not None and central(point["MB"]) >= low:
            found.append(central(point["us"]) / ours)
    return found


def _smaller(points: Sequence[Row], form: str) -> list[float]:
    """Against the plain bank of the same size, where that reads 256 MB or more."""
    sizes = ("b", "n", "hq", "h", "d", "p", "tokens")
    found = []
    for point in of(points, "decode", format=form):
        same: dict[str, Any] = {name: point[name] for name in sizes}
        found += [
            central(plain["us"]) / central(point["us"])
            for plain in of(points, "decode", format="plain", **same)
            if central(plain["MB"]) >= 256
        ]
    return found
