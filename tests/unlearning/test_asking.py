"""What a request names: ids, all the words of a query, or everything; and whose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from palimpsest.errors import ConfigError, InputError, RecordNotFound
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.record import Reach, Record, RecordId, Scope
from palimpsest.unlearning.asking import ForgetRequest, asked

ANNA = Scope(user="anna", session="monday")
BOB = Scope(user="bob", session="monday")
ELSEWHERE = Scope(tenant="other", user="anna", session="monday")

TOLD = {
    "r0": ("Climbing with Zoë in Évora.", ANNA),
    "r1": ("ZOE likes climbing, and so does Max.", Scope(user="anna", session="tuesday")),
    "r2": ("Zoëtrope is an old word.", ANNA),
    "r3": ("Zoë and climbing bore me.", BOB),
    "r4": ("Zoë was climbing there, too.", ELSEWHERE),
    "r5": ("我们在东京爬山。", ANNA),
}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with Ledger.open(tmp_path_factory.mktemp("asking") / "ledger.sqlite3") as made:
        made.append(
            Record(id=RecordId(id), text=text, scope=scope) for id, (text, scope) in TOLD.items()
        )
        yield made


def named(ledger: Ledger, scope: Scope = ANNA, **what: object) -> list[str]:
    request = ForgetRequest(scope=scope.across_sessions(), **what)  # type: ignore[arg-type]
    return list(asked(ledger.erasures, request))


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("zoe climbing", ["r0", "r1"]),
        ("Climbing, ZOË!", ["r0", "r1"]),
        ("zoetrope", ["r2"]),
        ("zo", None),
        ("climb", None),
        ("evora", ["r0"]),
        ("东京", ["r5"]),
    ],
)
def test_a_query_names_what_has_all_of_its_words_as_whole_words(
    ledger: Ledger, query: str, found: list[str] | None
) -> None:
    if found is None:
        with pytest.raises(RecordNotFound, match="no record with all these words"):
            named(ledger, query=query)
    else:
        assert named(ledger, query=query) == found


def test_a_query_finds_what_is_told_beside_a_text_and_none_of_our_own_words(
    tmp_path: Path,
) -> None:
    beside: dict[str, dict[str, Any]] = {
        "name": {"name": "zoe_letters.txt", "title": "Letters"},
        "deep": {"metadata": {"zoë": 1, "friends": ["Max", {"also": "Zoë"}]}},
        "both": {"speaker": "Zoë", "start": 3},
        "keys": {"metadata": {"zoe": "Max"}},
        "ours": dict.fromkeys(("finish", "model", "made", "key", "quarantined"), "zoe"),
    }
    with Ledger.open(tmp_path / "ledger.sqlite3") as made:
        made.append(
            Record(id=RecordId(id), text="We went climbing.", scope=ANNA, meta=meta)
            for id, meta in beside.items()
        )
        assert named(made, query="Zoe") == ["name", "deep", "both"]
        assert named(made, query="climbing letters ZOË") == ["name"]
        with pytest.raises(RecordNotFound):
            named(made, query="finish")


def test_a_session_narrows_it_and_all_users_widens_it_within_the_tenant(ledger: Ledger) -> None:
    one = ForgetRequest(scope=ANNA, query="zoe climbing")
    assert asked(ledger.erasures, one) == ["r0"]
    assert named(ledger, query="zoe climbing", all_users=True) == ["r0", "r1", "r3"]
    assert named(ledger, BOB, everything=True) == ["r3"]
    assert named(ledger, ELSEWHERE, everything=True, all_users=True) == ["r4"]


def test_ids_are_looked_up_within_reach_only(ledger: Ledger) -> None:
    ids = (RecordId("r1"), RecordId("r0"))
    assert named(ledger, ids=ids) == ["r0", "r1"]
    for stranger in (RecordId("r3"), RecordId("r4"), RecordId("unheard-of")):
        with pytest.raises(RecordNotFound, match=f"{stranger}.*nothing was forgotten"):
            named(ledger, ids=(*ids, stranger))


def test_nothing_at_all_is_said_to_be_nothing(ledger: Ledger) -> None:
    with pytest.raises(RecordNotFound, match="holds nothing"):
        named(ledger, Scope(user="nobody"), everything=True)


@pytest.mark.parametrize(
    "what", [{}, {"query": "a", "everything": True}, {"ids": ("a",), "query": "b"}]
)
def test_a_request_names_exactly_one_thing(what: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        ForgetRequest(scope=ANNA, **what)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["", "  ", "?!", "…"])
def test_a_query_without_words_is_refused(ledger: Ledger, query: str) -> None:
    with pytest.raises(InputError, match="no words"):
        named(ledger, query=query)


def test_a_request_says_how_it_asks_and_never_what(ledger: Ledger) -> None:
    asks = [
        ForgetRequest(scope=ANNA, query="zoe").asked,
        ForgetRequest(scope=ANNA, ids=(RecordId("r0"),)).asked,
        ForgetRequest(scope=ANNA, everything=True).asked,
    ]
    assert asks == ["query", "ids", "everything"]
    assert ForgetRequest(scope=ANNA, everything=True).reach == Reach.of(ANNA)
    assert ForgetRequest(scope=ANNA, everything=True, all_users=True).reach == Reach(
        tenant="default"
    )


@given(st.lists(st.sampled_from(["zoe", "climbing", "max", "old", "bore"]), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_longer_query_never_names_more(ledger: Ledger, query: list[str]) -> None:
    def found(words: list[str]) -> set[str]:
        try:
            return set(named(ledger, query=" ".join(words)))
        except RecordNotFound:
            return set()

    assert found(query) <= found(query[:-1] or query)
