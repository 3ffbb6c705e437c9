"""An agent that was told a dialogue, and ways of asking it that leave no trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...memory.record import RecordId
from .dialogue import Dialogue, records
from .setting import Setting

if TYPE_CHECKING:
    from pathlib import Path

    from ...agent.agent import Agent
    from ...agent.reply import Reply
    from .rankers import Ranker

SESSION = "dialogue"


def told(setting: Setting, dialogue: Dialogue) -> Path:
    """A data folder whose ledger holds the dialogue; each store reads it when it is opened."""
    home = setting.folder("told")
    with setting.agent(home=home) as agent:
        agent.append(list(records(dialogue.turns, replace(agent.scope, session=SESSION))))
    return home


def ranking(agent: Agent) -> Ranker:
    """What an agent recalls, as the turns it came from."""

    def rank(question: str, k: int) -> Sequence[str]:
        notes = agent.recall(question, session=SESSION, k=k).notes  # all k, however unlikely
        ids = [RecordId(id) for note in notes for id in note.records]
        found = agent.ledger.find(ids, agent.scope)
        return list(dict.fromkeys(str(record.meta["turn"]) for record in found))[:k]

    return rank


def ask(agent: Agent, question: str, *, session: str = SESSION, user: str | None = None) -> Reply:
    """Ask, and leave no trace of it: the next question finds the memory as this one did."""
    reply = agent.ask(question, session=session, user=user)
    said = [RecordId(id) for id in (reply.why.message, reply.record) if id]
    agent.ledger.erase(said, replace(agent.scope, user=user or agent.scope.user))
    agent.append([])
    return reply
