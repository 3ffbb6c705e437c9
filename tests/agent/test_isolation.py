"""No owner sees or changes what is another's, whatever the names, the words and the filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from palimpsest import Agent, ScriptedLLM
from palimpsest.errors import ConfigError, InputError, LedgerError, RecordNotFound
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Reach, Record, Scope, new_id

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ODD = [
    "a",
    "A",
    "b",
    "a ",
    "ａ",
    "%",
    "_",
    "*",
    '["a", "b"]',
    'a", "b',
    "a' OR 1=1 --",
    "a:b",
    "../a",
    "None",
    "past",
]
names = st.sampled_from(ODD) | st.text(min_size=1, max_size=6).filter(str.isprintable)
owners = st.builds(Scope, names, names, names)
words = st.lists(
    st.sampled_from(["heron", "mill", "coins", "March", "vault", "picture"]), min_size=1, max_size=6
).map(" ".join)
told = st.lists(st.tuples(st.integers(0, 2), names, words, st.integers(0, 9)), max_size=9)
values = names | st.sampled_from(["fact", "message", "user", "document", "raw"])
filters = st.dictionaries(
    st.sampled_from(["form", "kind", "role", "session", "source", "speaker"])
    | st.sampled_from(["tenant", "user", "agent", "owner", "id", "meta", "text", "1=1"]),
    values | st.lists(values, max_size=3) | st.booleans() | st.integers(),
    max_size=2,
)
days = st.none() | st.integers(-1, 11).map(lambda day: NOON + timedelta(days=day))
lenses = st.fixed_dictionaries(
    {},
    optional={
        "where": filters,
        "since": days,
        "until": days,
        "as_of": days,
        "k": st.integers(1, 40),
        "session": names,
    },
)
once = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One for all examples: what they leave behind is there to be seen by those that follow."""
    with closing(
        Agent.open(
            ScriptedLLM(lambda messages: f"You said: {str(messages[-1].content)[-80:]}"),
            home=tmp_path_factory.mktemp("isolation") / "home",
            memories=["scm:gate=always,floor=0,k=40,flash_turns=0"],
            embedder=HashingEmbedder(),
        )
    ) as opened:
        yield opened


def whose(owner: Scope, session: str | None = None) -> dict[str, Any]:
    """An owner as the agent's options name it."""
    named = {"tenant": owner.tenant, "user": owner.user, "agent": owner.agent}
    return named | ({"session": session} if session else {})


def tell(agent: Agent, everyone: list[Scope], script: list[Any]) -> list[Record]:
    records = [
        Record(
            text=text,
            scope=Scope(o.tenant, o.user, o.agent, session),
            kind="fact",
            created=NOON + timedelta(days=day),
        )
        for at, session, text, day in script
        for o in [everyone[at % len(everyone)]]
    ]
    agent.append(records)
    return records


@once
@given(everyone=st.lists(owners, min_size=2, max_size=3, unique=True), script=told, lens=lenses)
def test_a_recall_shows_its_owners_records_and_nobody_elses(
    agent: Agent, everyone: list[Scope], script: list[Any], lens: dict[str, Any]
) -> None:
    tell(agent, everyone, script)
    for owner in everyone:
        mine = {record.id for record in agent.ledger.records(owner)}
        assert bool(_notes(agent, "Which heron?", owner)) == bool(mine)
        with suppress(ConfigError):  # a filter that is not allowed
            shown = agent.recall("Where is the heron's vault?", **{**whose(owner), **lens}).notes
            assert {id for note in shown for id in note.records} <= mine
    if set(lens.get("where", ())) & {"tenant", "user", "agent", "owner", "id", "meta"}:
        with pytest.raises(ConfigError, match="may have"):
            agent.recall("heron", **whose(everyone[0]), **lens)


@once
@given(everyone=st.lists(owners, min_size=2, max_size=3, unique=True), script=told, data=st.data())
def test_no_verb_reaches_a_record_of_another_by_its_id(
    agent: Agent, everyone: list[Scope], script: list[Any], data: st.DataObject
) -> None:
    records = tell(agent, everyone, script)
    mine, other = data.draw(st.permutations(everyone))[:2]
    agent.remember("the heron", **whose(mine, "s"))
    theirs = [record.id for record in records if other.covers(record.scope)]
    theirs.append(agent.remember("the vault", **whose(other, "s")).id)
    id = data.draw(st.sampled_from(theirs))
    before = agent.ledger.records(other), agent.ledger.sessions(other), agent.ledger.head()
    me, ledger = whose(mine), agent.ledger
    verbs: dict[str, Callable[[], object]] = {
        "forget": lambda: agent.forget(id, **me),
        "forget several": lambda: agent.forget([id, new_id()], **me),
        "dry run": lambda: agent.forget(id, dry_run=True, **me),
        "correct": lambda: agent.correct(id, "mine now", **me),
        "history": lambda: agent.history(id, **me),
        "why": lambda: agent.why(id, **me),
        "release": lambda: agent.release(id, **me),
        "fork": lambda: agent.fork("s", "fork", at=id, **me),
        "get": lambda: ledger.get(id, mine),
        "supersede": lambda: ledger.append([Record(text="x", scope=mine, supersedes=id)]),
        "reply to": lambda: ledger.append([Record(text="x", scope=mine, parents=(id,))]),
        "take over": lambda: ledger.append([Record(id=id, text="x", scope=mine)]),
    }
    for name, verb in verbs.items():
        with pytest.raises((RecordNotFound, LedgerError, InputError)):
            verb()
            raise AssertionError(name)
    assert ledger.find([id], mine) == [] and ledger.erase([id], mine) == frozenset()
    assert (ledger.records(other), ledger.sessions(other), ledger.head()) == before


@once
@given(
    everyone=st.lists(owners, min_size=2, max_size=3, unique=True),
    script=told,
    query=words,
    way=st.sampled_from(["query", "owner", "tenant"]),
)
def test_forgetting_takes_nothing_of_anybody_else(
    agent: Agent, everyone: list[Scope], script: list[Any], query: str, way: str
) -> None:
    tell(agent, everyone, script)
    mine, *others = everyone
    ways: dict[str, dict[str, Any]] = {
        "query": {"query": query},
        "owner": {"everything": True},
        "tenant": {"everything": True, "all_users": True},
    }
    asked = ways[way]
    reach = Reach(tenant=mine.tenant) if way == "tenant" else Reach.of(mine)
    spared = [o for o in others if (o.tenant if way == "tenant" else o) not in (mine.tenant, mine)]
    before = {owner: agent.ledger.records(owner) for owner in spared}
    recalled = {owner: _notes(agent, query, owner) for owner in spared}
    with suppress(RecordNotFound):
        report = agent.forget(**asked, **whose(mine))
        assert report.who.tenant == reach.tenant and report.residue == 0
        assert not {r.id for records in before.values() for r in records} & report.ids
        if way != "query":
            assert agent.ledger.records(mine) == []
    assert {owner: agent.ledger.records(owner) for owner in spared} == before
    assert {owner: _notes(agent, query, owner) for owner in spared} == recalled
    for owner in spared:
        assert all(
            report.who.tenant == owner.tenant
            for report in agent.forgotten(all_users=True, **whose(owner))
        )


def _notes(agent: Agent, query: str, owner: Scope) -> list[str]:
    return [note.text for note in agent.recall(query, **whose(owner)).notes]
