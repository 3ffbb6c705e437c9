"""What must stay bounded: reading a document, a whole novel, a conversation of 200 turns."""

from __future__ import annotations

import sys
import time
from math import ceil, log2
from statistics import median
from typing import TYPE_CHECKING

from ...llm.base import GenerationConfig, generate
from ...memory.registry import READERS
from .dialogue import book, chronicle, coverage, key_names, needle_dialogue
from .harness import Row, Table, progress
from .setting import Meter, Setting

if TYPE_CHECKING:
    from ...memory.reading import Tree

NOVEL = "the_time_machine_35"
EXCERPT = 20_000
"""Tokens of the novel on which readers are compared in a full run."""

LIMITS = {"context": 1024, "block": 512, "summary": 48, "group": 400, "cap": 80}
"""Half as long summaries as the reader's defaults: a run takes half the time."""

ROOT_CAP = int(LIMITS["cap"] * 1.5)
TURNS, EDGE = 200, 20


def documents(setting: Setting) -> Table:
    """The summary tree beside summaries without context, one prompt, and the text's beginning."""
    from ...memory.stream.documents import truncate

    count = setting.llm.count_tokens
    if setting.full and setting.data is not None:
        text, name = truncate(book(setting.data, NOVEL), EXCERPT, count), f"start of {NOVEL}"
    else:
        text, name = chronicle(setting.rng("chronicle"), 12), "a chronicle of our own making"
    names = key_names(text)
    rows = [
        _read(setting, "summary tree (SCM)", text, names, with_context=True),
        _read(setting, "without context (RecursiveSum)", text, names, with_context=False),
    ]
    if count(text) + ROOT_CAP < setting.llm.context_window - 256:
        rows.append(_in_one_prompt(setting, text, names))
    lead = truncate(text, ROOT_CAP, count)
    rows.append(
        {
            "system": f"the first {ROOT_CAP} tokens",
            "names kept": coverage(names, lead),
            "root tokens": count(lead),
        }
    )
    return Table(
        title="reading a document within a fixed context",
        rows=rows,
        note=f"{name}, {count(text)} tokens; names kept: of the {len(names)} names it uses most,"
        f" the share in the final summary (root), and in all block summaries; limits: {LIMITS}",
        plot=("names kept",),
        published=(
            {"system": "SCM", "model": "gpt-3.5-turbo-0301", "coverage": 65, "coherence": 72},
            {"system": "SCM", "model": "text-davinci-003", "coverage": 67, "coherence": 75},
        ),
        source="arXiv 2304.13343, books: human win rate in % over RecursiveSum, as plotted in the"
        " authors' repository",
    )


def novel(setting: Setting) -> Table:
    """A whole novel, end to end."""
    text = book(setting.dataset(), NOVEL)
    names = key_names(text)
    return Table(
        title="a whole novel",
        rows=[_read(setting, "summary tree (SCM)", text, names, with_context=True)],
        note=f"{NOVEL}, {setting.llm.count_tokens(text)} tokens",
    )


def long_conversation(setting: Setting, turns: int = TURNS) -> Table:
    """A conversation in which every turn is answered: prompts, time and memory stay bounded."""
    dialogue = needle_dialogue(setting.rng("conversation"))
    said = [message for message, _ in dialogue.turns.values()]
    messages = [said[at % len(said)] for at in range(turns)]
    peaks, ms = [], []
    with setting.agent("scm", window=1024, max_tokens=16) as agent:
        for at, message in enumerate(messages):
            started = time.perf_counter()
            agent.ask(message, session="long")
            ms.append((time.perf_counter() - started) * 1000)
            peaks.append(peak_rss_mb())
            if at % EDGE == 0:
                progress(f"conversation: turn {at} of {turns}")
        assert isinstance(agent.llm, Meter)
        tokens = [asked.tokens for asked in agent.llm.asked]
        limit = agent.llm.context_window - agent.generation.max_tokens
    edge = min(EDGE, turns // 2)
    parts = {f"first {edge} turns": slice(0, edge), f"last {edge} turns": slice(-edge, None)}
    return Table(
        title=f"a conversation of {turns} turns",
        rows=[
            {
                "system": name,
                "ms per turn": median(ms[part]),
                "prompt tokens max": max(tokens[part]),
                "limit": limit,
                "peak RSS MB": max(peaks[part]),
            }
            for name, part in parts.items()
        ],
    )


def peak_rss_mb() -> float:
    """The most memory this process has had so far, in MB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _read(setting: Setting, system: str, text: str, names: list[str], *, with_context: bool) -> Row:
    from ...memory.reading import Tree

    reader = READERS.load("tree")
    started = time.perf_counter()
    tree: Tree = Tree.of(
        reader(setting.llm, reader.Config(**LIMITS, with_context=with_context)).read(
            text, progress=lambda made, all: progress(f"{system}: {made} of {all}")
        )
    )
    return _tree_row(system, tree, names) | {
        "seconds": time.perf_counter() - started,
        "peak RSS MB": peak_rss_mb(),
    }


def _tree_row(system: str, tree: Tree, names: list[str]) -> dict[str, str | float]:
    blocks = len(tree.levels[0])
    root = tree.root.text if tree.root else ""
    return {
        "system": system,
        "names kept": coverage(names, root),
        "in blocks": coverage(names, " ".join(section.text for section in tree.levels[0])),
        "blocks": blocks,
        "depth": len(tree.levels) - 1,
        "depth bound": ceil(log2(blocks)) + 1 if blocks > 1 else 1,
        "prompt + reply max": tree.max_prompt,
        "root tokens": tree.root.tokens if tree.root else 0,
    }


def _in_one_prompt(setting: Setting, text: str, names: list[str]) -> Row:
    from langchain_core.messages import HumanMessage

    progress("one prompt")
    started = time.perf_counter()
    asked = [HumanMessage(f"{text}\n\nSummarise the text above in a few sentences.")]
    summary = generate(setting.llm, asked, GenerationConfig(max_tokens=ROOT_CAP))
    return {
        "system": "full context: one prompt",
        "names kept": coverage(names, summary),
        "prompt + reply max": setting.llm.count_prompt_tokens(asked) + ROOT_CAP,
        "root tokens": setting.llm.count_tokens(summary),
        "seconds": time.perf_counter() - started,
        "peak RSS MB": peak_rss_mb(),
    }
