"""The gate of keys: what opens, what vetoes, and that entries know nothing of one another."""

from collections.abc import Sequence

import pytest
import torch
from palimpsest.memory.gates.base import Entry, route
from palimpsest.memory.gates.keys import KeyGate, named, subject_of
from palimpsest.memory.record import RecordId
from torch import Tensor

WORDS = ("capital", "city", "atlantis", "france", "sailor", "born", "is", "what", "the", "of")


def features(texts: Sequence[str]) -> Tensor:
    """How often each word stands in each text [N, D], and a constant."""
    rows = [[float(text.lower().count(word)) for word in WORDS] for text in texts]
    return torch.cat([torch.tensor(rows), torch.full((len(texts), 1), 0.1)], dim=1)


def entry(id: str, *inside: str, outside: tuple[str, ...] = (), subject: str | None) -> Entry:
    return Entry(id=RecordId(id), inside=inside, outside=outside, subject=subject)


ATLANTIS = entry("a", "The capital of Atlantis is", subject="Atlantis")
FRANCE = entry("f", "The capital of France is", subject="France")


def gate(*entries: Entry) -> KeyGate:
    made = KeyGate(features, threshold=0.5, strict=0.95)
    made.fit(entries)
    return made


def test_a_paraphrase_opens_the_entry_it_is_about() -> None:
    entries = (ATLANTIS, FRANCE)
    [one, other] = route(gate(*entries), entries, ["What is the capital of Atlantis?"] * 2)
    assert one is not None and one.open
    assert one.entry == "a"
    assert one == other


def test_the_same_relation_of_another_subject_is_vetoed() -> None:
    assert route(gate(ATLANTIS), [ATLANTIS], ["The capital of France is"]) == [None]
    [verdict] = gate(ATLANTIS).explain("The capital of France is")
    assert verdict.vetoed and not verdict.open
    assert verdict.score > verdict.threshold


def test_a_subject_opens_nothing_by_itself() -> None:
    assert route(gate(ATLANTIS), [ATLANTIS], ["A sailor born born born, Atlantis"]) == [None]


def test_another_relation_of_the_same_subject_is_vetoed_where_it_is_named_outside() -> None:
    asked = "What sailor is born of the Atlantis?"
    assert route(gate(ATLANTIS), [ATLANTIS], [asked]) != [None]
    told = entry(
        "a",
        "The capital of Atlantis is",
        outside=("What sailor is born of Atlantis?",),
        subject="Atlantis",
    )
    assert route(gate(told), [told], [asked]) == [None]
    assert route(gate(told), [told], ["The capital of Atlantis is"]) != [None]


def test_of_several_entries_about_one_subject_the_most_similar_opens() -> None:
    born = entry("b", "What sailor of Atlantis is born", subject="Atlantis")
    held = (ATLANTIS, born)
    asked = ["Atlantis Atlantis is what capital", "The sailor born of Atlantis Atlantis is"]
    found = route(gate(*held), held, asked)
    assert [verdict and verdict.entry for verdict in found] == ["a", "b"]
    assert [verdict.vetoed for verdict in gate(*held).explain(asked[0])] == [False, True]


def test_a_sentence_among_others_is_enough() -> None:
    asked = "Born sailor, what of it. The capital of Atlantis is"
    assert route(gate(ATLANTIS), [ATLANTIS], [asked]) != [None]


def test_without_a_subject_the_names_of_the_prompt_stand_for_it() -> None:
    guessed = entry("a", "The capital of Atlantis is", subject=None)
    assert subject_of(guessed) == "Atlantis"
    assert route(gate(guessed), [guessed], ["The capital of France is"]) == [None]


def test_without_any_name_the_strict_threshold_holds() -> None:
    nameless = entry("n", "the capital city is", subject=None)
    assert gate(nameless).thresholds.tolist() == pytest.approx([0.95])
    assert route(gate(nameless), [nameless], ["the capital city is"]) != [None]
    assert route(gate(nameless), [nameless], ["the capital sailor is"]) == [None]


def test_an_entry_scores_the_same_whatever_else_is_held() -> None:
    asked = ["What is the capital of Atlantis?", "Born in France"]
    alone = gate(ATLANTIS).score(asked)[:, 0]
    beside = gate(FRANCE, ATLANTIS).score(asked)[:, 1]
    assert torch.allclose(alone, beside)


def test_a_gate_that_holds_nothing_opens_nothing() -> None:
    assert route(gate(), [], ["The capital of Atlantis is"]) == [None]
    assert gate().explain("The capital of Atlantis is") == []


@pytest.mark.parametrize(
    ("subject", "prompt", "whether"),
    [
        ("Toodyay Fire Station", "Who's the architect at toodyay fire station?", True),
        ("Toodyay Fire Station", "Who built the Fire Station?", False),
        ("北京", "北京是哪个国家的首都？", True),
        ("Maria", "Mariana is here", False),
        ("Ada Lovelace King Byron", "What did Ada King, née Byron, born Lovelac, do?", True),
    ],
)
def test_whom_a_prompt_names(subject: str, prompt: str, whether: bool) -> None:
    assert named(subject, prompt) is whether
