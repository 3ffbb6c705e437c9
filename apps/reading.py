"""`palimpsest read`: long documents at the terminal, with a bar, and cancelled by Ctrl-C."""

from __future__ import annotations

from pathlib import Path

from ..agent.agent import Agent
from ..memory.registry import DEFAULT_READER, DEFAULT_SELECTOR
from .bar import bar
from .output import emit, out, read_text


def read_file(
    agent: Agent, file: Path, topic: str | None, reader: str | None, *, as_json: bool
) -> None:
    """Read a file into summaries; an interrupted reading goes on from its last section."""
    from ..memory.reading import Tree

    with bar(f"reading {file.name}") as tell:
        sections = agent.read(
            read_text(file),
            title=file.name,
            topic=topic,
            reader=reader or DEFAULT_READER,
            progress=tell,
        )
        tree = Tree.of(sections)
    if as_json:
        emit({"root": tree.root, "sections": tree.sections, "max_prompt": tree.max_prompt})
        return
    out.print(tree.draw(out.width), markup=False)
    if tree.root:
        out.print(f"\n{tree.root.text}", markup=False)


def ask_file(
    agent: Agent, file: Path, question: str, selector: str | None, *, as_json: bool
) -> None:
    """Answer a question from the parts of a file that bear on it."""
    text = read_text(file)
    with bar(f"searching {file.name}") as tell:
        answer = agent.ask_document(
            question, text, selector=selector or DEFAULT_SELECTOR, progress=tell
        )
    if answer is None:
        return
    if as_json:
        emit(answer)
        return
    out.print(answer.text, markup=False)
    for part in answer.context.segments:
        line = " ".join(part.text.split())[: out.width - 30]
        score = "" if part.score is None else f"{part.score:8.2f}"
        out.print(f"[dim]{score} {part.start}-{part.end}[/dim] ", end="")
        out.print(line, markup=False)
