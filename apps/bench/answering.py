"""Finding the turn that holds the answer, answering with it, and knowing when memory is needed.

Everything that is asked goes through the Agent, and is erased afterwards: no probe sees another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .dialogue import Dialogue, Probe, records
from .harness import Row, Table, progress
from .material import NEEDS_MEMORY, NEEDS_NOTHING
from .metrics import Spread, auc, contains
from .rankers import Ranker, bm25, chance, cosine, score
from .setting import Meter, Setting
from .told import SESSION, ask, ranking, told

if TYPE_CHECKING:
    from ...agent.agent import Agent

CUTOFFS = (1, 4, 6, 10)
TIGHT = 192
"""Tokens that prompt and reply have together where the controller must shrink what it found."""

SOURCE = (
    "Wang et al. 2023, arXiv 2304.13343, Dec 2023 version: 105 questions on 18 dialogues of their"
    " own, judged by people, in %"
)
PUBLISHED_RECALL: tuple[Row, ...] = (
    {"system": "SCM", "model": "gpt-3.5-turbo-0301", "memory retrieval recall": 93.5},
    {"system": "SCM", "model": "text-davinci-003", "memory retrieval recall": 94.0},
    {"system": "SCM without activation", "model": "text-davinci-003", "memory retrieval recall": 0},
)
PUBLISHED_ANSWERS: tuple[Row, ...] = (
    {"system": "SCM", "model": "gpt-3.5-turbo-0301", "answer accuracy": 68.3},
    {"system": "SCM", "model": "text-davinci-003", "answer accuracy": 77.1},
    {"system": "SCM without controller", "model": "text-davinci-003", "answer accuracy": 59.3},
    {"system": "SCM without flash", "model": "text-davinci-003", "answer accuracy": 72.9},
    {"system": "SCM without activation", "model": "text-davinci-003", "answer accuracy": 10.5},
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One way of answering; `window` is all the tokens it may use, None the model's own."""

    name: str
    memories: tuple[str, ...] = ()
    window: int | None = 1024


NOTHING = Condition("no memory")
FULL_CONTEXT = Condition("full context", ("recent:turns=100000",), None)
FLASH = Condition("SCM: flash only", ("scm:k=0",))
ACTIVATION = Condition("SCM: flash + activation", ("scm:gate=always",))
CONTROLLER = Condition(f"SCM: controller, {TIGHT} tokens", ("scm:gate=always",), TIGHT)
CONDITIONS = (
    NOTHING,
    Condition("last 4 turns", ("recent:turns=4",)),
    FULL_CONTEXT,
    FLASH,
    ACTIVATION,
    Condition("SCM: relevance gate (default)", ("scm",)),
    CONTROLLER,
    Condition(
        f"SCM: no controller, {TIGHT} tokens", ("scm:gate=always,reorganise=truncate",), TIGHT
    ),
)
CHOSEN = ("scm:gate=always,flash_turns=0,floor=0",)
"""Shows all that it was given, which is what somebody else chose for the question."""
FOUND = Condition("BM25, 4 turns", CHOSEN)
CEILING = Condition("reader's ceiling: the gold turn alone", CHOSEN)


def retrieval(setting: Setting, dialogue: Dialogue) -> Table:
    """Whether the turn with the answer is found, without a language model."""
    texts = dialogue.texts()
    home = told(setting, dialogue)
    rows: list[Row] = []
    for name, options in (
        ("SCM ranking", "w_rec=0"),
        ("SCM, recency 0.1", "w_rec=0.1"),
        ("SCM, unweighted recency", "w_rec=1"),
        ("SCM, paper's keys", "keys=paper"),
    ):
        progress(f"retrieval: {name}")
        with setting.agent(f"scm:k=10,budget=1500,gate=always,{options}", home=home) as agent:
            rows.append({"system": name, **score(ranking(agent), dialogue.probes, CUTOFFS)})
    baselines: Mapping[str, Ranker] = {
        "BM25 (FTS5 directly)": bm25(texts, setting.resources),
        "MiniLM alone": cosine(list(texts), setting.encode(list(texts.values())), setting.encode),
        "chance": chance(texts, setting.rng("chance")),
    }
    for name, rank in baselines.items():
        rows.append({"system": name, **score(rank, dialogue.probes, CUTOFFS)})
    return Table(
        title="finding the turn that holds the answer",
        rows=rows,
        note=f"{len(texts)} turns of our own making, {len(dialogue.probes)} questions in other"
        f" words, evidence {Spread.of(dialogue.ages()).median:.0f} turns ago (median)",
        plot=tuple(f"recall@{k}" for k in CUTOFFS),
        published=PUBLISHED_RECALL,
        source=SOURCE,
    )


def answers(setting: Setting, dialogue: Dialogue) -> Table:
    """Whether the reply contains the answer, by what the model was shown."""
    home = told(setting, dialogue)
    probes = dialogue.probes[::2] if setting.full else dialogue.probes[::4]
    few = probes if setting.full else probes[:3]
    rows = []
    for condition in CONDITIONS:
        asked = few if condition is FULL_CONTEXT else probes
        progress(f"answers: {condition.name}, {len(asked)} questions")
        with setting.agent(*condition.memories, home=home, window=condition.window) as agent:
            rows.append(_answered(condition, agent, asked))
    by_words = bm25(dialogue.texts(), setting.resources)
    for condition, choose in (
        (FOUND, lambda probe: by_words(probe.question, 4)),
        (CEILING, lambda probe: probe.evidence),
    ):
        progress(f"answers: {condition.name}")
        with setting.agent(*condition.memories) as agent:
            for at, probe in enumerate(probes):
                chosen = {key: dialogue.turns[key] for key in choose(probe)}
                scope = replace(agent.scope, user=_only(at), session="x")
                agent.append(list(records(chosen, scope)))
            rows.append(_answered(condition, agent, probes, user=_only))
    return Table(
        title="containment of the answer's keyword in the reply",
        rows=rows,
        note=f"{len(dialogue.turns)} turns; greedy; full context is asked {len(few)} of"
        f" {len(probes)} questions; first token in ms, from the message's arrival",
        plot=("containment",),
        published=PUBLISHED_ANSWERS,
        source=SOURCE,
    )


def gate(setting: Setting, dialogue: Dialogue) -> Table:
    """Whether commands that need memory are told from those that do not."""
    home = told(setting, dialogue)
    rows: list[Row] = []
    for mode in ("relevance", "llm"):
        progress(f"gate: {mode}")
        with setting.agent(f"scm:gate={mode}", home=home) as agent:
            rows.append(_separates(f"gate={mode}", lambda command: _gate_of(agent, command)))
    personal = re.compile(r"\b(I|my|me|our)\b", re.IGNORECASE)
    rows.append(_separates("a first-person word", lambda c: (float(bool(personal.search(c))), 0.5)))
    return Table(
        title="the gate: does this command need memory?",
        rows=rows,
        note=f"{len(NEEDS_MEMORY)} commands that need memory, {len(NEEDS_NOTHING)} that do not",
        plot=("AUC",),
    )


def _answered(
    condition: Condition,
    agent: Agent,
    probes: Sequence[Probe],
    user: Callable[[int], str] | None = None,
) -> Row:
    replies = [
        ask(agent, p.question, user=user(at) if user else None) for at, p in enumerate(probes)
    ]
    assert isinstance(agent.llm, Meter)
    tokens = [asked.tokens for asked in agent.llm.asked]
    right = [contains(r.text, p.keyword) for r, p in zip(replies, probes, strict=True)]
    first = [reply.why.first_token_ms for reply in replies if reply.why.first_token_ms is not None]
    return {
        "system": condition.name,
        "containment": sum(right) / len(right),
        "n": len(right),
        "prompt tokens p50": Spread.of(tokens).median,
        "prompt tokens max": max(tokens),
        "limit": agent.llm.context_window - agent.generation.max_tokens,
        "first token": Spread.of(first) if first else None,
    }


def _only(at: int) -> str:
    """A user whose memory holds what was chosen for the probe at this place, and nothing else."""
    return f"only-{at}"


def _gate_of(agent: Agent, command: str) -> tuple[float, float]:
    decided = agent.recall(command, session=SESSION).explain["scm"]["gate"]
    value, threshold = decided["value"], decided["threshold"]
    return (float("-inf") if value is None else value), (0.0 if threshold is None else threshold)


def _separates(system: str, decide: Callable[[str], tuple[float, float]]) -> Row:
    """`decide` gives a value and the threshold from which on memory is activated."""
    needed = [decide(command) for command in NEEDS_MEMORY]
    needless = [decide(command) for command in NEEDS_NOTHING]
    return {
        "system": system,
        "AUC": auc([value for value, _ in needed], [value for value, _ in needless]),
        "opened when needed": sum(v >= t for v, t in needed) / len(needed),
        "opened when not": sum(v >= t for v, t in needless) / len(needless),
    }
