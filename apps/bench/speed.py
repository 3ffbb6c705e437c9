"""How long things take, each beside the bare thing it wraps, in the same run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ...llm.base import GenerationConfig
from ...llm.open import open_llm
from ...memory.record import new_id
from .dialogue import Dialogue, records, turn_id
from .harness import Row, Table, progress
from .metrics import Spread
from .rankers import chroma_collection
from .setting import Meter, Setting
from .told import SESSION, ask, told

if TYPE_CHECKING:
    from ...agent.agent import Agent


PAUSE_S = 1.0
"""Before each first token, as between a person's turns: who comes second finds caches warm."""


def speed(setting: Setting, dialogue: Dialogue) -> Table:
    """First token, write, start of the program, load of the model."""
    rounds = 20 if setting.full else 6
    with setting.agent("scm", home=told(setting, dialogue), window=1024, max_tokens=1) as agent:
        progress("speed: first token")
        rows = _first_tokens(agent, dialogue, rounds)
        progress("speed: writes")
        rows += _writes(setting, agent, dialogue, rounds)
    progress("speed: start")
    return Table(
        title="time",
        rows=[*rows, *_starts(setting)],
        note="median (quartiles) in ms; the agent's ratio to each way is taken pair by pair",
    )


def _first_tokens(agent: Agent, dialogue: Dialogue, rounds: int) -> list[Row]:
    """Through the agent; what of it was the model's own, which is the same prompt at the same
    moment; and the prompt once more, to the model alone, one token longer, since a second prompt of
    the same length is quicker, as kernels are prepared by shape. Each question is new, so that no
    cache of embeddings helps the agent."""
    assert isinstance(agent.llm, Meter)
    meter, one = agent.llm, GenerationConfig(max_tokens=1)

    def through_agent(question: str) -> float:
        time.sleep(PAUSE_S)
        return ask(agent, question).why.first_token_ms or 0.0

    def afterwards() -> float:
        *before, last = meter.asked[-1].messages
        longer = last.model_copy(update={"content": f"{last.content} ."})
        time.sleep(PAUSE_S)
        list(meter.stream([*before, longer], (), one))
        return meter.asked[-1].first_token_ms

    ours, inside, alone = [], [], []
    for probe in dialogue.probes[: rounds + 1]:
        ours.append(through_agent(probe.question))
        inside.append(meter.asked[-1].first_token_ms)
        alone.append(afterwards())
    return [
        _paired("first token, through the agent", ours[1:], ours[1:]),
        _paired("of which the model's own", ours[1:], inside[1:]),
        _paired("the same prompt to the model, afterwards", ours[1:], alone[1:]),
    ]  # each first one paid for what is loaded once


def _paired(system: str, ours: list[float], theirs: list[float]) -> Row:
    ratio = Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
    return {"system": system, "ms": Spread.of(theirs), "agent's ratio to it": ratio}


def _writes(setting: Setting, agent: Agent, dialogue: Dialogue, rounds: int) -> list[Row]:
    """A turn into ledger and stores, and the same texts into Chroma called directly."""
    collection = chroma_collection(setting.folder("chroma"), setting.resources)
    turns = list(dialogue.turns.values())[: rounds + 1]
    scope = replace(agent.scope, session=SESSION)

    def directly(texts: list[str]) -> None:
        collection.add(ids=[new_id() for _ in texts], embeddings=setting.encode(texts))

    ours, theirs = [], []
    for at, (said, reply) in enumerate(turns):
        said = f"{said} ({at})"  # never embedded before
        turn = list(records({turn_id(at): (said, reply)}, scope))
        texts = [said, f"{said}\n{reply}"]
        ours.append(timed(partial(agent.append, turn)))
        theirs.append(timed(partial(directly, texts)))
    del ours[0], theirs[0]
    return [
        {"system": "write a turn: ledger and store", "ms": Spread.of(ours)},
        {"system": "MiniLM and Chroma directly", "ms": Spread.of(theirs)},
    ]


def _starts(setting: Setting) -> list[Row]:
    main = "from palimpsest.apps.cli import main; main()"
    rows: list[Row] = [
        {"system": name, "ms": Spread.of([_python(*arguments) for _ in range(5)])}
        for name, arguments in (
            ("import palimpsest", ("-c", "import palimpsest")),
            ("palimpsest --help", ("-c", main, "--help")),
            ("python alone", ("-c", "pass")),
        )
    ]
    load = [timed(lambda: open_llm(setting.model)) for _ in range(3)]
    return [*rows, {"system": "load the model", "ms": Spread.of(load)}]


def _python(*arguments: str) -> float:
    command = [sys.executable, *arguments]
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))


def timed(act: Callable[[], object]) -> float:
    """Milliseconds it takes."""
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000
