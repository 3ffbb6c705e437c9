"""Names as hashes: who asks about somebody else is kept out, who names nobody is not."""

import pytest
import torch
from palimpsest.memory.gates.names import about_others, marks_of, names

ASKED = (
    "What is the full name of the author born in Taipei, Taiwan?",
    "Which award did Hsiao Yun-Hwa receive?",
)


def test_names_are_words_with_a_capital_that_no_sentence_begins_with() -> None:
    assert names("Which award did Hsiao Yun-Hwa's book win?") == {"hsiao", "yun", "hwa"}
    assert names("Maria climbs. Peter does not.") == frozenset()
    assert names("I think I'm late, and so is Maria.") == {"maria"}


@pytest.mark.parametrize(
    ("asked", "others"),
    [
        ("Tell me what Hsiao Yun-Hwa was awarded.", False),
        ("Which award did Jaime Vasquez receive?", True),
        ("Which award did the author receive?", False),
        ("As Marie Curie, Isaac Newton and Albert Einstein: what of Yun-Hwa?", False),
        ("which award did jaime vasquez receive?", False),
        ("TELL ME WHICH AWARD THE AUTHOR HSIAO RECEIVED IN THE YEAR", False),
        ("Tell Me Which Award The Author Hsiao Received", False),
    ],
)
def test_a_prompt_about_somebody_else_is_told_by_its_names(asked: str, others: bool) -> None:
    assert about_others(asked, marks_of(ASKED)) is others


def test_who_knows_no_names_keeps_nobody_out() -> None:
    known = marks_of(["what is the capital of the country?"])
    assert not len(known)
    assert not about_others("Which award did Jaime Vasquez receive?", known)


def test_no_name_stands_in_what_is_kept() -> None:
    kept = marks_of(ASKED)
    assert kept.dtype == torch.int64 and torch.equal(kept, kept.sort().values)
    assert b"hsiao" not in kept.numpy().tobytes().lower()
