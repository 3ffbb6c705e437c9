"""Many strings found at once: exactly those that a search one by one would find."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from palimpsest.unlearning.matching import SHORTEST, Matcher

few_letters = st.sampled_from(b"ab\0")
"""A small alphabet, so that strings overlap, repeat and begin alike."""


def one_by_one(data: bytes, strings: set[bytes]) -> Counter[tuple[int, bytes]]:
    return Counter(
        (at, each) for each in strings for at in range(len(data)) if data.startswith(each, at)
    )


@given(
    strings=st.sets(
        st.lists(few_letters, min_size=SHORTEST, max_size=40).map(bytes), min_size=1, max_size=8
    ),
    data=st.data(),
)
def test_it_finds_every_occurrence_once_and_nothing_else(
    strings: set[bytes], data: st.DataObject
) -> None:
    noise = st.lists(few_letters, max_size=30).map(bytes)
    planted = noise | st.sampled_from(sorted(strings))
    text = b"".join(data.draw(st.lists(planted, max_size=12)))
    assert Counter(Matcher(strings).find(text)) == one_by_one(text, strings)


@given(st.binary(min_size=SHORTEST, max_size=300), st.binary(max_size=70), st.binary(max_size=70))
def test_a_string_is_found_at_any_offset(string: bytes, before: bytes, after: bytes) -> None:
    assert (len(before), string) in set(Matcher([string]).find(before + string + after))


@given(st.integers(0, 90), st.integers(0, 90), st.binary(min_size=30, max_size=60))
def test_what_begins_like_the_slack_of_a_page_is_found_by_what_follows(
    zeros: int, before: int, tail: bytes
) -> None:
    string = bytes(zeros) + tail
    data = b"\1" + bytes(before) + string + bytes(500)
    found = set(Matcher([string]).find(data))
    assert found == set(one_by_one(data, {string}))


def test_nothing_to_look_for_finds_nothing() -> None:
    matcher = Matcher([])
    assert list(matcher.find(b"anything")) == [] and matcher.longest == 0


def test_data_shorter_than_a_word_is_searched_too() -> None:
    assert [list(Matcher([b"eleven byte"]).find(b"x" * n)) for n in range(12)] == [[]] * 12


def test_thousands_of_strings_are_each_found() -> None:
    strings = [f"the secret number {n:05} of many".encode() for n in range(5000)]
    data = b"|".join(strings)
    assert Counter(string for _, string in Matcher(strings).find(data)) == Counter(strings)
