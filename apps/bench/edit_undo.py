"""Undoing: one of many edits, and one of a shard in which each was learnt on top of the others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ...editors.base import Edit
from ...editors.editor import Editor
from ...memory.record import Record, Scope
from .edit_lab import Laboratory, Plan
from .harness import Row, Table, progress

CHEAP = "wise:steps=1,contexts=0"
"""Learns badly and at once: what is timed is undoing."""

SHARD = "wise:shards=1,mode=merge,rank=0,gate=activation,beta=5,rate=0.003"
WORDS = ("green", "seven", "copper", "north", "maple", "quartz", "amber")


def undo(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """Seconds, and whether what is left is what learning only the rest makes."""
    many, few, shard = (1_000, 10, SHARD) if plan.full else (20, 3, f"{SHARD},steps=3")
    rows = [
        _undone(lab, f"{many} edits, a side memory each", CHEAP, many),
        _undone(lab, f"a shard of {few}, learnt anew", shard, few),
    ]
    yield Table(
        title="Undoing one edit",
        rows=rows,
        note="undo: until the edit is gone from memory and disk; replay: until those learnt on top"
        " of it are learnt again; equal: the digest of all that is kept, to that of another editor"
        " that was only ever given the rest. Undone: of many the middle one, of a shard the first",
    )


def _undone(lab: Laboratory, name: str, spec: str, count: int) -> Row:
    progress(f"undo: {name}")
    scope = Scope(user="undo")
    records = [edit.record(scope) for edit in codes(count)]
    editor = lab.editor(spec)
    learning = _learnt(editor, records)
    gone = records[count // 2 if spec == CHEAP else 0]
    began = time.perf_counter()
    editor.forget([gone.id])
    undoing = time.perf_counter() - began
    began = time.perf_counter()
    again = len(editor.learn())
    replay = time.perf_counter() - began
    rest = lab.editor(spec)
    _learnt(rest, [record for record in records if record.id != gone.id])
    return {
        "what": name,
        "learning s": learning,
        "undo s": undoing,
        "learnt again": again,
        "replay s": replay,
        "equal": editor.digest() == rest.digest(),
    }


def _learnt(editor: Editor, records: Sequence[Record]) -> float:
    began = time.perf_counter()
    editor.write(records)
    editor.learn()
    return time.perf_counter() - began


def codes(count: int) -> list[Edit]:
    """Edits of which no two are alike."""
    return [
        Edit(
            prompt=f"The code word of drawer {at} is",
            target=WORDS[at % len(WORDS)],
            subject=f"drawer {at}",
        )
        for at in range(count)
    ]
