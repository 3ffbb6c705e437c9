"""What the method page expects of SCM at this scale (section 9), beside what was measured."""

from __future__ import annotations

from .harness import Row, Table
from .metrics import Spread
from .reading import LIMITS, ROOT_CAP
from .scm import ACTIVATION, CONDITIONS, CONTROLLER, FLASH, NOTHING


def targets(found: Table, answered: Table, gates: Table, read: Table, timed: Table) -> Table:
    """One row for each check, and whether it held."""

    def contained(system: str) -> float:
        return number(answered, system, "containment")

    recency, plain = "SCM, unweighted recency", "SCM ranking"
    tree = "summary tree (SCM)"
    fits = all(
        number(answered, c.name, "prompt tokens max") <= number(answered, c.name, "limit")
        for c in CONDITIONS
    )
    hurt = number(found, plain, "recall@6") - number(found, recency, "recall@6")
    rows = [
        at_least("unweighted recency hurts recall@6 by", hurt, 0.1),
        at_most("no memory: containment", contained(NOTHING.name), 0.1),
        at_most("flash only: containment", contained(FLASH.name), 0.1),
        at_least("flash + activation: containment", contained(ACTIVATION.name), 0.6),
        at_least(
            "controller in a tight window: containment",
            contained(CONTROLLER.name),
            round(contained(ACTIVATION.name) - 0.05, 3),
        ),
        at_least("every prompt within its limit", float(fits), 1),
        at_least("gate=similarity: AUC", number(gates, "gate=similarity", "AUC"), 0.7),
        at_most("tree: depth", number(read, tree, "depth"), number(read, tree, "depth bound")),
        at_most(
            "tree: prompt + reply", number(read, tree, "prompt + reply max"), LIMITS["context"]
        ),
        at_most("tree: root tokens", number(read, tree, "root tokens"), ROOT_CAP),
        at_most(
            "first token through the agent, of bare",
            number(timed, "first token, through the agent", "ratio"),
            1.1,
        ),
        at_most("import palimpsest, ms", number(timed, "import palimpsest", "ms"), 300),
        at_most("palimpsest --help, ms", number(timed, "palimpsest --help", "ms"), 500),
        at_most("load the model, ms", number(timed, "load the model", "ms"), 3000),
    ]
    return Table(title="targets", rows=rows)


def at_most(check: str, measured: float, bound: float) -> Row:
    """A row that holds if `measured <= bound`."""
    return {
        "check": check,
        "measured": measured,
        "target": f"<= {bound:g}",
        "held": measured <= bound,
    }


def at_least(check: str, measured: float, bound: float) -> Row:
    """A row that holds if `measured >= bound`."""
    return {
        "check": check,
        "measured": measured,
        "target": f">= {bound:g}",
        "held": measured >= bound,
    }


def number(table: Table, system: str, metric: str) -> float:
    """A cell, or the median of a spread."""
    [row] = [row for row in table.rows if row[table.first] == system]
    cell = row[metric]
    return cell.median if isinstance(cell, Spread) else float(cell)  # type: ignore[arg-type]
