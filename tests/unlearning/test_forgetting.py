"""Forgetting as a user sees it, with a real ledger and a real store in a folder of their own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from palimpsest import Agent, ScriptedLLM
from palimpsest.errors import (
    ConfigError,
    InputError,
    LedgerError,
    PlanOutdated,
    RecordNotFound,
    StoreError,
)
from palimpsest.memory.database import Database
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.projection import check
from palimpsest.memory.record import Record, RecordId, Scope
from palimpsest.memory.stream.memory import StreamMemory
from palimpsest.memory.vectors import Embedder
from palimpsest.unlearning.report import Plan, Report

from .bytescan import left_of

OpenAgent = Callable[..., Agent]

SECRET = 'Zoë\'s PIN for the vault is 99-44-17, she "told" me.'
HERON = "The heron nests in an old willow by the mill."
SISTER = "Sister Ingrid sails around Lofoten every August."
EMBEDDER = HashingEmbedder()


def polite(messages: Sequence[BaseMessage]) -> str:
    """Answers with the end of what it was told, so that a reply repeats what it went by."""
    return f"Certainly! {' '.join(str(messages[-1].content).split())[-160:]}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def open_agent(home: Path) -> Iterator[OpenAgent]:
    """Agents on one data folder; each is closed before the next opens."""
    opened: list[Agent] = []

    def open_one(llm: ScriptedLLM | None = None, **options: object) -> Agent:
        while opened:
            opened.pop().close()
        options = {"memories": ["scm:gate=always"], "embedder": EMBEDDER, **options}
        agent = Agent.open(llm or ScriptedLLM(polite), home=home, **options)  # type: ignore[arg-type]
        opened.append(agent)
        return agent

    yield open_one
    while opened:
        opened.pop().close()


def recalled(agent: Agent, query: str, **options: Any) -> str:
    return "\n".join(note.text for note in agent.recall(query, **options).notes)


def all_texts(agent: Agent, **scope: str) -> set[str]:
    return {record.text for record in agent.ledger.records(replace(agent.scope, **scope))}


def agrees(agent: Agent) -> bool:
    agent.ledger.verify_chain()
    return all(check(agent.ledger, memory).agrees for memory in agent.memories)


# One record, and what follows from it.


def test_a_record_is_gone_from_every_byte_and_what_stays_is_still_known(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET, session="a")
    agent.remember(HERON, session="a")
    agent.remember(SISTER, session="b")
    assert left_of(home, EMBEDDER, SECRET), "the scan does not see what is there"
    report = agent.forget(secret.id)
    assert report.residue == 0 and report.ids == {secret.id}
    assert left_of(home, EMBEDDER, SECRET) == []
    assert left_of(home, EMBEDDER, HERON) and left_of(home, EMBEDDER, SISTER)
    assert HERON in recalled(agent, "heron nests") and SISTER in recalled(agent, "Ingrid sails")
    assert SECRET not in recalled(agent, "PIN for the vault")
    assert agrees(agent)
    agent.close()
    assert left_of(home, EMBEDDER, SECRET) == []


def test_it_stays_gone_after_the_agent_is_opened_again(open_agent: OpenAgent, home: Path) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET)
    report = agent.forget(secret)
    agent = open_agent()
    assert agent.forgotten() == [report]
    assert left_of(home, EMBEDDER, SECRET) == []
    with pytest.raises(RecordNotFound):
        agent.forget(secret)


def test_replies_that_went_by_it_and_their_traces_go_along(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET, session="a")
    reply = agent.ask("What does Zoë need at the bank?", session="b")
    unrelated = agent.ask("Rainbows have seven colours?", session="c")
    assert "99-44-17" in reply.text and secret.id in reply.why.records
    assert reply.record is not None
    plan = agent.forget(secret.id, dry_run=True)
    whys = {record.id: (record.why, record.of) for record in plan.records}
    assert whys[secret.id] == ("asked for", None)
    assert whys[RecordId(reply.record)][0] == "made from"
    agent.forget(plan)
    assert left_of(home, EMBEDDER, SECRET) == []
    with pytest.raises(RecordNotFound):
        agent.why(reply.record)
    kept = [turn.user.text for turn in agent.turns(session="b")]
    assert kept == ["What does Zoë need at the bank?"], "the question itself says nothing of it"
    assert unrelated.record in plan.ids or agent.why(unrelated.record)


def test_every_version_of_a_record_goes(open_agent: OpenAgent, home: Path) -> None:
    agent = open_agent()
    texts = ["My doctor is Amélie Brandt in Ghent.", "My doctor is Otto Quist in Bruges."]
    old = agent.remember(texts[0])
    new = agent.correct(old.id, texts[1])
    report = agent.forget(old.id)
    assert {(r.id, r.why, r.of) for r in report.records} == {
        (old.id, "asked for", None),
        (new.id, "version of", old.id),
    }
    assert left_of(home, EMBEDDER, *texts) == []
    assert agrees(agent)


def test_a_summary_of_what_goes_and_what_stays_is_made_anew_of_what_stays(
    open_agent: OpenAgent, home: Path
) -> None:
    def brief(messages: Sequence[BaseMessage]) -> str:
        prompt = " ".join(str(message.content) for message in messages)
        return f"It is about {'99-44-17' if '99-44-17' in prompt else 'herons'}.\n\nYes, really."

    agent = open_agent(ScriptedLLM(brief), memories=["scm:summarise_above=0,gate=always"])
    secret = agent.remember(SECRET, session="a")
    question = f"What does Zoë need at the bank? {HERON * 20}"
    reply = agent.ask(question, session="b")
    agent.derive()
    assert "99-44-17" in reply.text and "99-44-17" in recalled(agent, "herons at the bank")
    report = agent.forget(secret.id)
    [made] = report.rebuilt
    assert {r.id: r.why for r in report.records}[made] == "made from"
    assert left_of(home, EMBEDDER, SECRET) == []
    assert "99-44-17" not in recalled(agent, "herons at the bank")
    assert agent.derive() == 1
    texts = {record.text for record in agent.ledger.records(agent.scope, kinds=["summary"])}
    assert texts == {"It is about herons. Yes, really."}
    assert agrees(agent)


def test_what_somebody_else_said_word_for_word_stays_and_is_named(open_agent: OpenAgent) -> None:
    agent = open_agent()
    first, second = agent.remember(SECRET, session="a"), agent.remember(SECRET, session="b")
    report = agent.forget(first.id)
    assert report.search is not None
    assert (report.residue, report.search.also_said) == (0, (first.id,))
    assert SECRET in recalled(agent, "PIN for the vault")
    assert agent.forget(second.id).search.also_said == ()  # type: ignore[union-attr]


# Many records.


def test_all_with_the_words_of_a_query_go_and_nothing_else(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    agent.remember("Bertil Åkesson lives at Storgatan twelve.", session="a")
    agent.remember("On Tuesdays ÅKESSON, Bertil plays the cello.", session="b")
    agent.remember("Bertil Nilsson repairs clocks in Ystad.", session="b")
    report = agent.forget(query="akesson bertil")
    assert len(report.records) == 2 and report.residue == 0
    gone = ["Bertil Åkesson lives at Storgatan", "ÅKESSON, Bertil plays the cello"]
    assert left_of(home, EMBEDDER, *gone) == []
    assert all_texts(agent) == {"Bertil Nilsson repairs clocks in Ystad."}
    assert not any("akesson" in file.read_text("latin-1") for file in files(home))


def test_a_text_that_is_no_id_is_taken_as_a_query(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.remember(SECRET)
    agent.remember(HERON)
    assert len(agent.forget("vault").records) == 1
    with pytest.raises(RecordNotFound, match="no record with all these words"):
        agent.forget("vault")


def test_everything_of_a_user_goes_with_the_names_of_the_conversations(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    for text, session in ((SECRET, "about-the-vault"), (HERON, "about-birds")):
        agent.ask(text, session=session)
    agent.fork("about-birds", "about-birds-and-mills")
    agent.ledger.rename(replace(agent.scope, session="about-birds"), "What Zoë said of herons")
    agent.derive()
    report = agent.forget(everything=True)
    assert report.residue == 0 and len(report.records) >= 4
    assert left_of(home, EMBEDDER, SECRET, HERON, "What Zoë said of herons") == []
    assert agent.sessions() == [] and all_texts(agent) == set()
    assert not any(b"about-birds" in file.read_bytes() for file in files(home))
    assert all(memory.held() == frozenset() for memory in agent.memories)
    agent.remember(SISTER)
    assert SISTER in recalled(agent, "Ingrid sails")
    assert agrees(agent)


def test_one_conversation_goes_and_the_others_stay(open_agent: OpenAgent, home: Path) -> None:
    agent = open_agent()
    agent.remember(SECRET, session="a")
    agent.remember(HERON, session="b")
    agent.forget(everything=True, session="a")
    assert left_of(home, EMBEDDER, SECRET) == []
    assert [info.id for info in agent.sessions()] == ["b"]


def test_a_fork_keeps_what_it_reads_of_a_conversation_that_was_forgotten_in_part(
    open_agent: OpenAgent,
) -> None:
    agent = open_agent()
    agent.remember(HERON, session="origin")
    first = agent.remember(SECRET, session="origin")
    agent.fork("origin", "branch")
    agent.forget(first.id)
    assert {info.id for info in agent.sessions()} == {"origin", "branch"}
    agent.forget(query="heron")
    assert agent.sessions() == [], "nothing is left that either of them could show"


TITLE = 'A "quoted" title: Wilhelmina and the bees'


def test_a_query_leaves_nothing_of_what_stood_beside_texts(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    scope = replace(agent.scope, session="mem0")
    metas: tuple[dict[str, Any], ...] = (
        {"user_id": "wilhelmina"},
        {"metadata": {"of": ["Wilhelmina B."]}},
        {"title": TITLE},
    )
    records = [
        Record(text=f"Likes bouldering, {n}.", scope=scope, source="document", meta=meta)
        for n, meta in enumerate(metas)
    ]
    agent.append(records)
    agent.remember(HERON)
    report = agent.forget("Wilhelmina")
    assert report.ids == {record.id for record in records}
    assert report.residue == 0
    agent.close()
    for file in filter(Path.is_file, home.rglob("*")):
        assert b"wilhelmina" not in file.read_bytes().lower(), file


def test_what_stood_beside_a_text_and_beside_one_that_stays_is_no_residue(
    open_agent: OpenAgent,
) -> None:
    agent = open_agent(user="wilhelmina-and-sons")
    meta = {"title": TITLE, "name": "bees.txt", "user_id": "wilhelmina-and-sons"}
    scope = replace(agent.scope, session="s")
    records = [Record(text=text, scope=scope, meta=meta) for text in (HERON, SISTER)]
    agent.append(records)
    for record in records:
        report = agent.forget(record.id)
        assert report.residue == 0 and report.search is not None
        assert report.search.also_said == (), "a title is no second telling"


def test_what_is_left_of_a_title_is_residue(open_agent: OpenAgent, home: Path) -> None:
    agent = open_agent()
    scope = replace(agent.scope, session="s")
    agent.append([Record(text=HERON, scope=scope, meta={"title": TITLE})])
    (home / "note.txt").write_text(TITLE)
    report = agent.forget("heron")
    assert report.search is not None
    assert {(hit.file, hit.form) for hit in report.search.hits} == {("note.txt", "meta")}


def test_one_users_forgetting_never_touches_another(open_agent: OpenAgent, home: Path) -> None:
    agent = open_agent()
    agent.remember(SECRET, user="anna")
    agent.remember(SECRET, user="bob", session="x")
    mine = agent.remember(HERON, user="bob", session="x")
    for what in ({"what": mine.id}, {"query": "heron"}):
        with pytest.raises(RecordNotFound):
            agent.forget(**what, user="anna")
    before = agent.ledger.records(replace(agent.scope, user="bob"))
    report = agent.forget(everything=True, user="anna")
    assert report.search is not None and report.search.also_said == tuple(report.ids)
    assert agent.ledger.records(replace(agent.scope, user="bob")) == before
    assert SECRET in recalled(agent, "PIN for the vault", user="bob")
    assert SECRET not in recalled(agent, "PIN for the vault", user="anna")
    assert agent.forgotten(user="bob") == []


def test_a_whole_tenant_is_forgotten_and_other_tenants_are_not(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    agent.remember(SECRET, user="anna", tenant="acme")
    agent.remember(HERON, user="bob", tenant="acme")
    agent.remember(SISTER, user="anna", tenant="other")
    report = agent.forget(everything=True, all_users=True, tenant="acme")
    assert len(report.records) == 2 and report.residue == 0
    assert left_of(home, EMBEDDER, SECRET, HERON) == []
    assert SISTER in recalled(agent, "Ingrid sails", tenant="other", user="anna")
    assert agent.forgotten(all_users=True, tenant="acme") == [report]
    assert agent.forgotten(all_users=True, tenant="other") == []


# Looking first.


def test_a_dry_run_lists_exactly_what_goes_and_changes_nothing(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET, session="a")
    agent.ask("What does Zoë need at the bank?", session="b")
    digests = [memory.digest() for memory in agent.memories]
    head, before = agent.ledger.head(), agent.ledger.stats()
    plan = agent.forget(secret.id, dry_run=True)
    assert isinstance(plan, Plan) and plan.signature is None and plan.residue is None
    assert (agent.ledger.head(), agent.ledger.stats()) == (head, before)
    assert [memory.digest() for memory in agent.memories] == digests
    assert agent.forgotten() == []
    assert left_of(home, EMBEDDER, SECRET)
    held = agent.ledger.lineage(plan.ids)["scm"]
    report = agent.forget(plan)
    assert (report.id, report.ids, report.traces) == (plan.id, plan.ids, plan.traces)
    assert {key for s in plan.stores for key in (*s.erased, *s.rebuilt)} == {e.key for e in held}


def test_a_plan_is_refused_once_the_ledger_has_changed(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.remember(SECRET, session="a")
    plan = agent.forget(query="vault", dry_run=True)
    agent.remember("The vault is behind the picture.", session="a")
    with pytest.raises(PlanOutdated, match="1 records were to be forgotten"):
        agent.forget(plan)
    assert SECRET in all_texts(agent)
    agent.remember(HERON)
    again = agent.forget(query="vault", dry_run=True)
    agent.remember(SISTER)  # what has nothing to do with it does not matter
    assert len(agent.forget(again).records) == 2


def test_a_report_of_something_done_is_no_plan(open_agent: OpenAgent) -> None:
    agent = open_agent()
    done = agent.forget(agent.remember(SECRET))
    with pytest.raises(ConfigError, match="something done"):
        agent.forget(done)
    plan = agent.forget(agent.remember(HERON), dry_run=True)
    with pytest.raises(ConfigError, match="beside it"):
        agent.forget(plan, query="heron")


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({}, ConfigError),
        ({"query": "heron", "everything": True}, ConfigError),
        ({"what": "nobody", "query": "heron"}, ConfigError),
        ({"what": []}, ConfigError),
        ({"query": " ?! "}, InputError),
        ({"query": "pelican"}, RecordNotFound),
        ({"what": ["unknown", "ids"]}, RecordNotFound),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_goes(
    open_agent: OpenAgent, asked: dict[str, object], error: type[Exception]
) -> None:
    agent = open_agent()
    agent.remember(HERON)
    with pytest.raises(error):
        agent.forget(**asked)  # type: ignore[arg-type]
    assert all_texts(agent) == {HERON} and agent.forgotten() == []


def test_one_unknown_id_among_known_ones_stops_it_all(open_agent: OpenAgent) -> None:
    agent = open_agent()
    known = agent.remember(HERON)
    with pytest.raises(RecordNotFound, match="nothing was forgotten"):
        agent.forget([known.id, "unknown"])
    assert all_texts(agent) == {HERON}


# While other things happen.


def test_a_turn_that_goes_by_what_is_forgotten_meanwhile_is_not_kept(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET, session="a")
    pieces = agent.stream("What does Zoë need at the bank?", session="b")
    next(pieces)
    report = agent.forget(secret.id)
    said = "".join(map(str, pieces))
    assert "99-44-17" in said and report.residue == 0
    assert [turn.reply for turn in agent.turns(session="b")] == [None]
    assert left_of(home, EMBEDDER, SECRET) == []
    assert agrees(agent)


def test_the_models_own_tool_forgets_and_the_order_itself_goes_along(
    open_agent: OpenAgent, home: Path
) -> None:
    def forgetful(messages: Sequence[BaseMessage]) -> str:
        if "tool_result" in str(messages[-1].content):
            return "It is gone."
        return json.dumps({"name": "forget", "arguments": {"words": "vault"}})

    agent = open_agent(ScriptedLLM(forgetful), tools=["forget"])
    agent.remember(SECRET, session="a")
    reply = agent.ask("Forget the PIN of the vault, please.", session="b")
    assert reply.text == "It is gone."
    assert left_of(home, EMBEDDER, SECRET, "Forget the PIN of the vault") == []
    assert all_texts(agent) == set()
    assert agrees(agent)


def test_others_may_write_while_something_is_forgotten(open_agent: OpenAgent, home: Path) -> None:
    agent = open_agent()
    secrets = [agent.remember(f"Secret {n} is {n * 7919 % 9973:05} heron.") for n in range(6)]
    failed: list[BaseException] = []

    def chat(name: str) -> None:
        try:
            for n in range(12):
                agent.ask(f"{name} likes the number {n} of the tram.", session=name)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=chat, args=(name,)) for name in ("anna", "bob")]
    for thread in threads:
        thread.start()
    reports = [agent.forget(secret.id) for secret in secrets]
    for thread in threads:
        thread.join()
    assert failed == [] and all(report.residue == 0 for report in reports)
    for record in secrets:
        assert left_of(home, EMBEDDER, record.text) == []
    assert len(agent.turns(100, session="anna")) == 12
    assert agrees(agent)


# When something goes wrong.


def test_a_step_that_fails_is_made_up_for_by_the_next_call(
    open_agent: OpenAgent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = open_agent()
    secret, heron = agent.remember(SECRET), agent.remember(HERON)

    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(StreamMemory, "purge", full)
        with pytest.raises(StoreError, match="disk is full"):
            agent.forget(secret.id)
    assert SECRET not in all_texts(agent) and agent.forgotten() == []
    agent.forget(heron.id)
    assert left_of(home, EMBEDDER, SECRET, HERON) == []
    assert [report.residue for report in agent.forgotten()] == [0, 0], "it was not searched for"


def test_if_the_ledger_cannot_erase_nothing_was_begun(
    open_agent: OpenAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET)

    def locked(*_: object, **__: object) -> None:
        raise LedgerError("locked")

    with monkeypatch.context() as broken:
        broken.setattr("palimpsest.memory.erasures.journal.erase", locked)
        with pytest.raises(LedgerError):
            agent.forget(secret.id)
    agent = open_agent()
    assert SECRET in all_texts(agent) and agent.forgotten() == []


def test_what_an_open_store_does_not_hold_but_a_closed_one_does_is_not_half_forgotten(
    open_agent: OpenAgent,
) -> None:
    secret = open_agent().remember(SECRET)
    agent = open_agent(memories=[])
    with pytest.raises(ConfigError, match="store scm holds some"):
        agent.forget(secret.id)
    assert SECRET in all_texts(agent)


def test_a_store_that_has_lost_step_is_made_anew(
    open_agent: OpenAgent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET)
    agent.remember(HERON)
    [store] = agent.memories
    real = StreamMemory.forget
    calls: list[int] = []

    def deaf(self: StreamMemory, ids: list[str]) -> object:
        calls.append(len(ids))
        return real(self, []) if len(calls) == 1 else real(self, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(StreamMemory, "forget", deaf)
    report = agent.forget(secret.id)
    assert any("made anew" in each for each in report.stores[0].checked)
    assert report.residue == 0 and left_of(home, EMBEDDER, SECRET) == []
    assert HERON in recalled(agent, "heron nests") and store.held()


def test_what_the_database_left_over_is_found_and_written_away(
    open_agent: OpenAgent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite as it is by default does not overwrite what it deletes; the search sees that."""
    monkeypatch.setitem(pragmas(), "secure_delete", "OFF")
    agent = open_agent()
    secret = agent.remember(SECRET)
    agent.remember(HERON)
    rewrites: list[bool] = []
    real = Database.scrub

    def noted(self: Database, *, rewrite: bool = True) -> None:
        rewrites.append(rewrite)
        real(self, rewrite=rewrite)

    monkeypatch.setattr(Database, "scrub", noted)
    report = agent.forget(secret.id)
    assert report.rewritten and report.residue == 0
    assert rewrites == [False, False, True, True]
    assert left_of(home, EMBEDDER, SECRET) == []


def test_of_a_text_too_short_to_search_for_its_row_is_searched_for(
    open_agent: OpenAgent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = open_agent()
    agent.remember(HERON)
    for careful, rewritten in (("ON", False), ("OFF", True)):
        monkeypatch.setitem(pragmas(), "secure_delete", careful)
        agent = open_agent()
        short = agent.remember("yes")
        report = agent.forget(short.id)
        assert report.search is not None
        assert report.search.unsearchable == (short.id,)
        assert (report.rewritten, report.residue) == (rewritten, 0)
        assert any("too short or too plain" in each for each in report.unchecked)


def test_residue_elsewhere_in_the_folder_is_reported_and_not_hidden(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET)
    (home / "notes.txt").write_text(f"a note of somebody: {SECRET}", encoding="utf-16-be")
    report = agent.forget(secret.id)
    assert report.search is not None and report.residue
    assert {(hit.file, hit.of) for hit in report.search.hits} == {("notes.txt", secret.id)}


# What the report says beside that.


def test_backups_that_hold_it_still_are_named(open_agent: OpenAgent, home: Path) -> None:
    agent = open_agent()
    agent.remember(HERON)
    before = agent.ledger.head()
    secret = agent.remember(SECRET)
    after = agent.ledger.head()
    inside = home / "backups" / "tuesday"
    inside.mkdir(parents=True)
    (inside / "copy").write_text(SECRET, encoding="utf-8")
    made = [("/mnt/monday", before), (str(inside), after), ("/mnt/foreign", "f" * 64)]
    listed = [{"path": path, "created": "2026-01-01", "head": head} for path, head in made]
    (home / "backups.json").write_text(json.dumps(listed))
    report = agent.forget(secret.id)
    assert [backup.path for backup in report.backups] == [str(inside), "/mnt/foreign"]
    assert report.residue == 0, "what a named backup holds is no residue"


def test_a_list_of_backups_that_cannot_be_read_is_said_to_be_so(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    secret = agent.remember(SECRET)
    (home / "backups.json").write_text("[{")
    report = agent.forget(secret.id)
    assert report.backups == ()
    assert any("backups.json cannot be read" in each for each in report.unchecked)


def test_the_report_comes_back_as_it_was_written_and_says_no_word_of_it(
    open_agent: OpenAgent,
) -> None:
    agent = open_agent()
    agent.ask(SECRET, session="a")
    report = agent.forget(query="vault zoe")
    document = report.to_json()
    assert Report.from_json(json.loads(json.dumps(document))) == report
    told = json.dumps(document, ensure_ascii=False).casefold()
    assert not any(word in told for word in ("vault", "zoe", "zoë", "99-44-17"))
    assert report.before and report.after and report.finished and report.version


def test_the_ledger_tells_the_same_story(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.remember(HERON)
    secret = agent.remember(SECRET)
    head = agent.ledger.head()
    report = agent.forget(secret.id)
    assert report.before is not None and report.before.hash == head
    assert report.after is not None and report.after.hash == agent.ledger.head()
    erased = [event for event in agent.ledger.events() if event.kind == "erase"]
    assert [event.subject for event in erased] == [secret.id]


def test_a_ledger_outside_of_the_folder_is_searched_too(tmp_path: Path) -> None:
    home, ledger = tmp_path / "home", tmp_path / "elsewhere.sqlite3"
    with Agent.open(
        ScriptedLLM(polite),
        home=home,
        embedder=EMBEDDER,
        memories=["recent"],
        ledger_url=f"sqlite:///{ledger}",
    ) as agent:
        secret = agent.remember(SECRET)
        assert SECRET.encode() in b"".join(f.read_bytes() for f in tmp_path.glob("elsewhere*"))
        report = agent.forget(secret.id)
        assert report.search is not None and report.residue == 0
        assert report.search.bytes > ledger.stat().st_size
    assert not any(b"99-44-17" in f.read_bytes() for f in tmp_path.glob("elsewhere*"))


@pytest.mark.model
def test_the_vectors_of_the_real_encoder_are_gone_too(
    tmp_path: Path, embedder: Embedder, open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent(embedder=embedder)
    secret = agent.remember(SECRET)
    agent.remember(HERON)
    assert left_of(home, embedder, SECRET)
    assert agent.forget(secret.id).residue == 0
    assert left_of(home, embedder, SECRET) == []
    assert HERON in recalled(agent, "Where do birds breed?")


def test_records_of_ones_own_making_can_be_forgotten_in_bulk(
    open_agent: OpenAgent, home: Path
) -> None:
    agent = open_agent()
    scope = Scope(session="import")
    texts = [f"Entry {n}: {n * 104729 % 999983:06} is the number of box {n}." for n in range(300)]
    records = [Record(text=text, scope=scope) for text in texts]
    agent.append(records)
    gone, kept = records[::3], [r.text for r in records if r not in records[::3]]
    report = agent.forget(gone)
    assert len(report.records) == 100 and report.residue == 0
    assert all_texts(agent) == set(kept)
    assert left_of(home, EMBEDDER, *(record.text[:16] for record in gone[:20])) == []


def files(home: Path) -> list[Path]:
    found = [path for path in home.rglob("*") if path.is_file()]
    assert found
    return found


def pragmas() -> Any:
    from palimpsest.memory import database

    return database.PRAGMAS
