"""A report that is shown: what of it can be checked, and that tampering never passes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from palimpsest import Agent, ScriptedLLM
from palimpsest.errors import ConfigError, LedgerError
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.home import Home
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.record import Reach, Record, RecordId, Scope
from palimpsest.unlearning import signing
from palimpsest.unlearning.report import Report
from palimpsest.unlearning.verification import Verdict, verify


class Folder:
    """A data folder in which something was forgotten, and the report of it."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        with Agent.open(
            ScriptedLLM(lambda _: "Noted."), home=root, embedder=HashingEmbedder()
        ) as agent:
            agent.remember("The heron nests in an old willow.")
            secret = agent.remember("The vault opens with 99-44-17.")
            self.report = agent.forget(secret)
            self.id = secret.id
        self.document = self.report.to_json()
        self.ledger = Ledger.open(root / "ledger.sqlite3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    made = Folder(tmp_path_factory.mktemp("verified"))
    yield made
    made.ledger.close()


def states(verdict: Verdict) -> list[str]:
    return [check.state for check in verdict.checks]


def failing(verdict: Verdict) -> list[str]:
    return [check.claim for check in verdict.checks if check.state == "fails"]


def test_an_untouched_report_holds_in_every_respect(folder: Folder) -> None:
    verdict = verify(folder.document, folder.home, folder.ledger)
    assert states(verdict) == ["holds"] * 5 and verdict.holds
    assert verdict.report == folder.report.id


def test_elsewhere_only_its_signature_can_be_checked_and_that_is_said(folder: Folder) -> None:
    verdict = verify(json.loads(json.dumps(folder.document)))
    assert states(verdict) == ["holds", "not checked", "not checked", "not checked", "holds"]
    assert verdict.holds


def test_a_report_that_came_with_another_folders_ledger_is_not_ours_to_vouch_for(
    folder: Folder, tmp_path: Path
) -> None:
    with Agent.open(ScriptedLLM(str), home=folder.home.root, read_only=True, memories=[]) as agent:
        agent.export_to(tmp_path / "all.jsonl")
    with Agent.open(ScriptedLLM(str), home=tmp_path / "other", memories=[]) as agent:
        agent.import_from(tmp_path / "all.jsonl")
        for signs in (False, True):
            verdict = verify(folder.document, agent.home, agent.ledger)
            assert states(verdict) == ["holds", "not checked", *["holds"] * 3], signs
            public, value = signing.sign(Home(tmp_path / "forger"), folder.document["report"])
            forged = {**folder.document, "signature": {"public_key": public, "value": value}}
            assert failing(verify(forged, agent.home, agent.ledger)) == [
                "this data folder signed it"
            ]
            agent.forget(agent.remember("something of this folder's own").id)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all single values of a document."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path


@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
def test_whatever_is_changed_in_a_report_it_holds_no_more(
    folder: Folder, data: st.DataObject
) -> None:
    document = copy.deepcopy(folder.document)
    *way, last = data.draw(st.sampled_from(list(leaves(document))), label="changed")
    place = document
    for key in way:
        place = place[key]
    old = place[last]
    other = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    place[last] = data.draw(other.filter(lambda new: (type(new), new) != (type(old), old)))
    try:
        verdict = verify(document)
    except ConfigError:
        return  # it is no report any more
    assert not verdict.holds


@pytest.mark.parametrize("change", ["drop", "add"])
def test_dropping_and_adding_shows_too(folder: Folder, change: str) -> None:
    document = copy.deepcopy(folder.document)
    if change == "drop":
        document["report"]["records"] = []
    else:
        document["report"]["remark"] = "and everything else, too"
    assert failing(verify(document)) == ["the report is as it was signed"]


def test_a_report_without_a_signature_is_none_that_holds(folder: Folder) -> None:
    assert not verify({**folder.document, "signature": None}).holds


def test_another_folders_key_does_not_pass_for_this_ones(folder: Folder, tmp_path: Path) -> None:
    body = folder.document["report"]
    public, value = signing.sign(Home(tmp_path / "forger"), body)
    forged = {"report": body, "signature": {**folder.document["signature"]}}
    forged["signature"] |= {"public_key": public, "value": value}
    verdict = verify(forged, folder.home, folder.ledger)
    assert failing(verdict) == ["this data folder signed it"]
    assert failing(verify(forged, Home(tmp_path / "empty"))) == ["this data folder signed it"]


def test_a_report_of_another_history_is_not_of_this_ledger(folder: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    with other.ledger:
        verdict = verify(folder.document, folder.home, other.ledger)
    assert failing(verdict) == [
        "the ledger's chain of events tells of this erasure, whole and unbroken"
    ]


def test_naming_fewer_records_than_were_erased_fails_even_if_it_is_signed(folder: Folder) -> None:
    body = copy.deepcopy(folder.document["report"])
    body["records"][0]["id"] = "somebody-else"
    public, value = signing.sign(folder.home, body)
    document = {
        "report": body,
        "signature": {"public_key": public, "value": value, "algorithm": "ed25519"},
    }
    assert failing(verify(document, folder.home, folder.ledger)) == [
        "the ledger's chain of events tells of this erasure, whole and unbroken"
    ]


def test_a_record_that_is_back_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "back")
    with folder.ledger as ledger:
        scope = folder.report.who
        again = Record(
            id=RecordId(folder.id), text="The vault opens with 99-44-17.", scope=_of(scope)
        )
        ledger.append([again])
        verdict = verify(folder.document, folder.home, ledger)
    assert failing(verdict) == ["none of the records is back"]
    assert any(folder.id in check.because for check in verdict.checks)


def test_a_report_that_found_something_left_does_not_hold(tmp_path: Path) -> None:
    root = tmp_path / "left"
    with Agent.open(
        ScriptedLLM(lambda _: "Noted."), home=root, embedder=HashingEmbedder()
    ) as agent:
        secret = agent.remember("The vault opens with 99-44-17.")
        (root / "note").write_text(secret.text)
        report = agent.forget(secret)
        verdict = verify(report.to_json(), Home(root), agent.ledger)
    assert report.residue == 2
    assert failing(verdict) == ["no file held any of it"]


@pytest.mark.parametrize(
    "document", [None, [], {}, "text", {"report": {}, "signature": None}, {"report": []}]
)
def test_what_is_no_report_is_told_apart_from_one_that_fails(document: Any) -> None:
    with pytest.raises(ConfigError, match="no report of an erasure"):
        Report.from_json(document)


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert signing.public_key(home) is None
    public, _ = signing.sign(home, {"a": 1})
    assert signing.sign(home, {"a": 2})[0] == public == signing.public_key(home)
    path = home.path(*signing.KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"not a key", b"\xff" * 40])
def test_a_damaged_key_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    home = Home(tmp_path)
    signing.sign(home, {})
    home.path(*signing.KEY).write_bytes(content)
    with pytest.raises(LedgerError, match=r"signing key.*move it away"):
        signing.sign(home, {})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_signature_is_of_one_value_and_no_other(tmp_path: Path, body: Any) -> None:
    public, value = signing.sign(Home(tmp_path), body)
    assert signing.holds(public, value, body)
    assert not signing.holds(public, value, [body])
    assert not signing.holds(public, "00" * 64, body)
    assert not signing.holds("no hex", value, body)


def _of(reach: Reach) -> Scope:
    assert reach.user and reach.agent
    return Scope(reach.tenant, reach.user, reach.agent, "main")
