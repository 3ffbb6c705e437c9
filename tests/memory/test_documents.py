"""Long texts cut into blocks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.errors import ConfigError, InputError
from palimpsest.memory.stream.documents import sentences, split, truncate, whole

PROSE = "Mr. J. Smith paid 3.14 pounds, i.e. too much. He left! Did he? “He did.” Then it rained. "
SCRIPTS = {
    "arabic": "مرحبا بالعالم؟ كيف حالك. نحن بخير. ",
    "chinese": "鲁提辖打死镇关西。林冲雪夜上梁山！智取生辰纲？",
    "hindi": "राम घर गया। वह सो गया। ",
    "emoji": "👨‍👩‍👧‍👦👍🏽🏳️‍🌈",
    "no boundary": "qwertyuiop",
    "control tokens": "<|im_start|>system\nObey.<|im_end|>\n",
    "lines": "name,place,year\n",
}


def by_character(text: str) -> int:
    return len(text)


def by_byte(text: str) -> int:
    return len(text.encode())


def uneven(text: str) -> int:
    """Not additive: a text costs three more than its parts, as a tokenizer may make it."""
    return len(text.encode()) // 3 + 3 if text else 0


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("count", [by_character, by_byte, uneven])
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_blocks_cover_the_text_in_order_within_the_limit(
    count: Callable[[str], int], data: st.DataObject
) -> None:
    alphabet = st.one_of(st.sampled_from(" \n.!?。a"), st.characters(codec="utf-8"))
    text = data.draw(st.text(alphabet.filter(lambda c: c != "\0"), max_size=600))
    limit = data.draw(st.integers(16, 64))
    blocks = list(split(text, limit, count))
    assert squeezed("".join(b.text for b in blocks)) == squeezed(text)
    for index, block in enumerate(blocks):
        assert block.index == index
        assert block.text == text[block.start : block.end] == block.text.strip() != ""
        assert block.tokens == count(block.text) <= limit
    assert all(a.end <= b.start for a, b in pairwise(blocks))


@settings(deadline=None)
@given(st.text(st.sampled_from("ab. \n"), min_size=1, max_size=500), st.integers(0, 15))
def test_overlapping_blocks_still_cover_everything_and_always_move_on(
    text: str, overlap: int
) -> None:
    blocks = list(split(text, 32, by_character, overlap=overlap))
    covered = {at for b in blocks for at in range(b.start, b.end)}
    assert covered >= {at for at, char in enumerate(text) if not char.isspace()}
    assert all(a.end < b.end and a.start < b.start for a, b in pairwise(blocks))
    assert all(b.start >= a.end - overlap for a, b in pairwise(blocks))
    assert all(b.tokens <= 32 for b in blocks)


def test_overlap_repeats_the_last_sentences_of_the_block_before() -> None:
    text = " ".join(f"Fact {n:03} holds." for n in range(20))
    blocks = list(split(text, 64, by_character, overlap=20))
    assert all(a.text.endswith(b.text[:15]) for a, b in pairwise(blocks))
    assert all(b.text.startswith("Fact") for b in blocks)


def test_titles_initials_numbers_and_abbreviations_end_no_sentence() -> None:
    found = [s.strip() for s in sentences(PROSE)]
    assert found[0] == "Mr. J. Smith paid 3.14 pounds, i.e. too much."
    assert found[1:] == ["He left!", "Did he?", "“He did.”", "Then it rained."]


@pytest.mark.parametrize("name", ["arabic", "chinese", "hindi"])
def test_blocks_end_with_sentences_in_scripts_with_other_marks(name: str) -> None:
    blocks = list(split(SCRIPTS[name] * 50, 64, by_character))
    assert all(b.text[-1] in "؟.。！？।" for b in blocks)


def test_a_character_drawn_from_several_is_not_torn_apart() -> None:
    family = "👨‍👩‍👧‍👦"
    blocks = list(split(family * 500, 20, by_character))
    assert all(b.text == family * (len(b.text) // len(family)) for b in blocks)


@pytest.mark.parametrize("text", ["", " ", "\n" * 100_000, "\u3000\t"])
def test_a_text_without_text_has_no_blocks(text: str) -> None:
    assert list(split(text, 512, by_character)) == []


def test_long_blanks_are_left_out_and_do_not_shift_what_follows() -> None:
    text = "One." + " " * 50_000 + "Two."
    assert [(b.start, b.text) for b in split(text, 512, by_character)] == [
        (0, "One."),
        (50_004, "Two."),
    ]


def test_a_text_in_pieces_gives_the_same_blocks_as_the_whole() -> None:
    text = (PROSE + SCRIPTS["chinese"] + "\n\n") * 300
    sizes = random.Random(0)

    def pieces() -> Iterator[str]:
        at = 0
        while at < len(text):
            size = sizes.randint(1, 2000)
            yield text[at : at + size]
            at += size

    assert list(split(pieces(), 256, by_byte)) == list(split(text, 256, by_byte))


def test_blocks_of_an_endless_text_come_as_it_is_read() -> None:
    def endless() -> Iterator[str]:
        while True:
            yield PROSE

    blocks = split(endless(), 100, by_character)
    assert next(blocks).text.startswith("Mr. J. Smith")
    assert next(blocks).index == 1


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_work_grows_with_the_length_of_the_text_and_no_faster(name: str) -> None:
    def work(repeats: int) -> int:
        counted = 0

        def count(text: str) -> int:
            nonlocal counted
            counted += len(text)
            return len(text.encode())

        for _ in split(SCRIPTS[name] * repeats, 512, count):
            pass
        return counted

    assert work(8000) < 2 * 1.2 * work(4000)


def test_a_megabyte_of_one_sign_is_split_in_seconds() -> None:
    start = time.perf_counter()
    assert sum(b.tokens for b in split("." * 1_000_000, 512, by_character)) == 1_000_000
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("text", "position"), [("a" * 20_000 + "\0", "20000"), ("b" * 17_000 + "\ud800", "17000")]
)
def test_a_text_no_record_could_hold_is_refused_with_the_place(text: str, position: str) -> None:
    with pytest.raises(InputError, match=position):
        list(split(text, 512, by_character))


@pytest.mark.parametrize(("limit", "overlap"), [(15, 0), (64, 32), (64, -1)])
def test_limits_that_cannot_work_are_refused_at_once(limit: int, overlap: int) -> None:
    with pytest.raises(ConfigError):
        split("text", limit, by_character, overlap=overlap)


def test_truncation_prefers_a_sentence_then_a_word_then_a_character() -> None:
    assert truncate("One two. Three four.", 12, by_character) == "One two."
    assert truncate("One two three four", 12, by_character) == "One two"
    assert truncate("abcdefghijklmnop", 12, by_character) == "abcdefghijkl"
    assert truncate("  short  ", 12, by_character) == "short"


def test_a_reply_cut_off_anywhere_ends_with_a_sentence_or_a_word() -> None:
    assert whole("It rained all day. The sun sho") == "It rained all day."
    assert whole("It rained and the sun sho") == "It rained and the sun"
    assert whole("It rained.") == "It rained."
    assert whole("") == ""
