"""`palimpsest bench scm`: the checks of the SCM memory stream, on a model of this size.

What is expected is section 9 of the method page: retrieval, answers, gate, documents, and speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .answering import ACTIVATION, CONDITIONS, CONTROLLER, FLASH, NOTHING, answers, gate, retrieval
from .dialogue import needle_dialogue
from .harness import Row, Table, central
from .reading import LIMITS, ROOT_CAP, documents, long_conversation, novel
from .setting import Setting
from .speed import speed


def scm(setting: Setting) -> Iterator[Table]:
    """Retrieval, answers, gate, documents, speed; then how each check of the method page ended."""
    dialogue = needle_dialogue(setting.rng("needles"))
    tables = []
    parts: list[Callable[[], Table]] = [
        lambda: retrieval(setting, dialogue),
        lambda: answers(setting, dialogue),
        lambda: gate(setting, dialogue),
        lambda: documents(setting),
        lambda: speed(setting, dialogue),
    ]
    if setting.full:
        parts.append(lambda: long_conversation(setting))
        if setting.data is not None:
            parts.append(lambda: novel(setting))
    for part in parts:
        tables.append(part())
        yield tables[-1]
    yield targets(*tables[:5])


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
        at_least("gate=relevance: AUC", number(gates, "gate=relevance", "AUC"), 0.7),
        at_most("tree: depth", number(read, tree, "depth"), number(read, tree, "depth bound")),
        at_most(
            "tree: prompt + reply", number(read, tree, "prompt + reply max"), LIMITS["context"]
        ),
        at_most("tree: root tokens", number(read, tree, "root tokens"), ROOT_CAP),
        at_most(
            "first token through the agent, of the model's own within it",
            number(timed, "of which the model's own", "agent's ratio to it"),
            1.1,
        ),
        at_most(
            "first token through the agent, of the model's afterwards",
            number(timed, "the same prompt to the model, afterwards", "agent's ratio to it"),
            1.1,
        ),
        at_most("import palimpsest, ms", number(timed, "import palimpsest", "ms"), 300),
        at_most("palimpsest --help, ms", number(timed, "palimpsest --help", "ms"), 500),
        at_most("load the model, ms", number(timed, "load the model", "ms"), 3000),
    ]
    return Table(title="targets", rows=rows)


def at_most(check: str, measured: float, bound: float) -> Row:
    """A check that holds if `measured <= bound`."""
    held = measured <= bound
    return {"check": check, "measured": measured, "target": f"<= {bound:g}", "held": held}


def at_least(check: str, measured: float, bound: float) -> Row:
    """A check that holds if `measured >= bound`."""
    held = measured >= bound
    return {"check": check, "measured": measured, "target": f">= {bound:g}", "held": held}


def number(table: Table, system: str, metric: str) -> float:
    """A cell as one number."""
    [row] = [row for row in table.rows if row[table.first] == system]
    return central(row[metric])
