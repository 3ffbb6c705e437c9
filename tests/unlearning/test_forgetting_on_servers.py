"""Forgetting where vectors are on a Chroma server, or everything is in PostgreSQL.

What a server's own files still hold is beyond the product, and its report says so; what it can be
asked for is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palimpsest import Agent, ScriptedLLM
from palimpsest.errors import RecordNotFound
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.projection import check
from palimpsest.memory.record import Record, Scope
from palimpsest.unlearning.report import Plan

from ..servers import POSTGRES, Servers
from .bytescan import contents, left_of

EMBEDDER = HashingEmbedder()
SECRET = "Zoë keeps the PIN of the vault, 99-44-17, under the third flower pot."
SECOND = "The vault itself stands behind the picture of the steam engine."
HERON = "The heron nests in an old willow by the mill."
LANES = ["Chroma", *(["PostgreSQL"] if POSTGRES else [])]


class Place:
    """An agent's home of which a part lies on a server."""

    def __init__(self, lane: str, servers: Servers, home: Path) -> None:
        self.lane, self.servers, self.home = lane, servers, home

    def open(self) -> Agent:
        options: dict[str, Any] = (
            {"chroma_url": self.servers.chroma}
            if self.lane == "Chroma"
            else {"ledger_url": self.servers.database(self.home)}
        )
        llm = ScriptedLLM(lambda messages: f"Certainly! {str(messages[-1].content)[-160:]}")
        memories = ["scm:gate=always,floor=0"]
        return Agent.open(llm, home=self.home, embedder=EMBEDDER, memories=memories, **options)

    def contents(self) -> Mapping[str, bytes]:
        """All bytes of the folder, and of what the server gives when it is asked."""
        tables = self.servers.contents(self.home) if self.lane == "PostgreSQL" else {}
        return contents(self.home) | tables

    def mirrored(self, text: str) -> bool:
        """Whether Chroma has the vector of a text, in any collection at all."""
        import chromadb
        from chromadb.config import Settings

        [vector] = EMBEDDER.embed([text])
        host, port = self.servers.chroma.removeprefix("http://").split(":")
        settings = Settings(anonymized_telemetry=False)
        client = chromadb.HttpClient(host=host, port=int(port), settings=settings)
        try:
            for collection in client.list_collections():
                there = np.asarray(collection.get(include=["embeddings"])["embeddings"])
                alike = there.shape[1:] == vector.shape  # other tests' embedders are narrower
                if alike and float((there @ vector).max()) > 0.999:
                    return True
            return False
        finally:
            for side in (client, client._admin_client):
                side._server._session.close()
            client.close()


@pytest.fixture(params=LANES)
def place(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Place:
    return Place(request.param, servers, tmp_path / "home")


@pytest.fixture
def agent(place: Place) -> Iterator[Agent]:
    with closing(place.open()) as opened:
        yield opened


def texts(agent: Agent, **scope: str) -> set[str]:
    return {record.text for record in agent.ledger.records(replace(agent.scope, **scope))}


def recalled(agent: Agent, query: str, **options: Any) -> str:
    return "\n".join(note.text for note in agent.recall(query, **options).notes)


def agrees(agent: Agent) -> bool:
    agent.ledger.verify_chain()
    return all(check(agent.ledger, memory).agrees for memory in agent.memories)


def test_a_record_and_the_reply_to_it_are_gone_wherever_one_can_look(
    place: Place, agent: Agent
) -> None:
    secret = agent.remember(SECRET, session="a")
    reply = agent.ask("What does Zoë hide, and where?", session="b")
    agent.remember(HERON, session="a")
    assert "99-44-17" in reply.text
    assert left_of(place.contents(), EMBEDDER, SECRET), "the scan does not see what is there"
    if place.lane == "Chroma":
        assert place.mirrored(SECRET) and place.mirrored(HERON)
    report = agent.forget(secret.id)
    assert {secret.id, reply.record} <= report.ids and report.residue == 0
    assert left_of(place.contents(), EMBEDDER, SECRET) == []
    assert HERON in recalled(agent, "heron nests") and "99-44" not in recalled(agent, "PIN")
    if place.lane == "Chroma":
        assert place.mirrored(HERON) and not place.mirrored(SECRET)
    assert any(word in " ".join(report.unchecked) for word in ("Chroma server", "database server"))
    assert agrees(agent)


def test_all_that_a_query_names_is_gone_and_a_dry_run_says_so_before(
    place: Place, agent: Agent
) -> None:
    for text in (SECRET, SECOND, HERON):
        agent.remember(text)
    plan = agent.forget(query="vault", dry_run=True)
    assert isinstance(plan, Plan) and len(plan.records) == 2
    assert left_of(place.contents(), EMBEDDER, SECRET)
    report = agent.forget(plan)
    assert report.ids == plan.ids and report.residue == 0
    assert left_of(place.contents(), EMBEDDER, SECRET, SECOND) == []
    assert texts(agent) == {HERON} and agrees(agent)


def test_a_whole_tenant_is_gone_and_the_other_is_as_it_was(place: Place, agent: Agent) -> None:
    agent.remember(SECRET, tenant="acme", user="anna")
    agent.remember(SECOND, tenant="acme", user="bob")
    agent.remember(HERON, tenant="other", user="anna")
    with pytest.raises(RecordNotFound):
        agent.forget(query="vault", tenant="other", user="anna")
    report = agent.forget(everything=True, all_users=True, tenant="acme")
    assert len(report.records) == 2 and report.residue == 0
    assert left_of(place.contents(), EMBEDDER, SECRET, SECOND) == []
    assert HERON in recalled(agent, "heron nests", tenant="other", user="anna")
    if place.lane == "Chroma":
        assert not place.mirrored(SECRET) and not place.mirrored(SECOND) and place.mirrored(HERON)
    assert agrees(agent)


def test_what_was_forgotten_stays_gone_when_the_agent_is_opened_again(place: Place) -> None:
    with closing(place.open()) as agent:
        agent.append([Record(text=text, scope=Scope(session="s")) for text in (SECRET, HERON)])
        report = agent.forget(query="flower pot")
    with closing(place.open()) as agent:
        assert agent.forgotten() == [report]
        assert texts(agent) == {HERON} and agrees(agent)
        assert "99-44" not in recalled(agent, "What is the PIN of the vault?")
    assert left_of(place.contents(), EMBEDDER, SECRET) == []
