"""Text that may be printed as it comes, and stop strings that never show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.llm.detokenise import Detokeniser, ReplyText, StopText
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast


def _byte_level() -> PreTrainedTokenizerFast:
    from tokenizers import pre_tokenizers

    vocab = {text: id for id, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _byte_fallback() -> PreTrainedTokenizerFast:
    """As SentencePiece models are: words begin with ▁, rare characters are bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Hello", "▁world", "lo"]
    core = Tokenizer(
        models.BPE(
            vocab={text: id for id, text in enumerate(words)},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


BYTES = _byte_level()


@given(st.text())
def test_whole_characters_come_out_and_nothing_is_lost(text: str) -> None:
    characters = Detokeniser(BYTES)
    pieces = [characters.push(id) for id in BYTES.encode(text)]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    # A U+FFFD of the text itself is held until more comes, and dropped if nothing does.
    assert "".join(pieces) + characters.flush() == text.rstrip("\ufffd")


def test_an_emoji_appears_with_its_last_byte() -> None:
    characters = Detokeniser(BYTES)
    assert [characters.push(id) for id in BYTES.encode("a👍b")] == ["a", "", "", "", "👍", "b"]


def test_half_a_character_at_the_end_is_dropped() -> None:
    characters = Detokeniser(BYTES)
    for id in BYTES.encode("é👍")[:-1]:
        characters.push(id)
    assert characters.flush() == ""


def test_byte_fallback_and_word_starts_are_right() -> None:
    tokenizer = _byte_fallback()
    characters = Detokeniser(tokenizer)
    emoji = [1 + byte for byte in "👍".encode()]
    pieces = [characters.push(id) for id in [257, 258, *emoji, 258, 259]]
    assert pieces == ["Hello", " world", "", "", "", "👍", " world", "lo"]


@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), max_size=30),
)
def test_what_is_shown_is_the_text_before_the_first_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stop, shown, rest = StopText(stops), "", text
    for cut in [*cuts, len(text)]:
        if stop.found:
            break
        shown += stop.push(rest[:cut])
        rest = rest[cut:]
        assert not any(each in shown for each in stops)
    if not stop.found:
        shown += stop.flush()
    read = text[: len(text) - len(rest)]
    first = min((read.find(each) for each in stops if each in read), default=len(read))
    assert shown == read[:first]
    assert stop.found == any(each in read for each in stops)


def test_text_that_only_looked_like_a_stop_string_is_shown_in_the_end() -> None:
    stop = StopText(["###"])
    assert [stop.push(piece) for piece in ("a#", "#", "b#")] == ["a", "", "##b"]
    assert stop.flush() == "#"


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("👍 STOP", ["STOP"], "👍 "),
        ("end STO", ["STOP"], "end STO"),
    ],
)
def test_a_reply_ends_before_its_stop_string(text: str, stops: list[str], shown: str) -> None:
    reply, got = ReplyText(BYTES, stops), ""
    for id in BYTES.encode(text):
        got += reply.push(id)
        if reply.stopped:
            break
    assert got + reply.finish() == shown
