"""Stop strings, control tokens and counts of a model that is served elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage, SystemMessage
from palimpsest.errors import InputError
from palimpsest.llm.base import generate
from palimpsest.llm.catalog import resolve
from palimpsest.llm.detokenise import StopText
from palimpsest.llm.remote import RemoteLLM
from palimpsest.llm.served import estimate_tokens, harmless


@pytest.fixture(scope="module")
def model_folder() -> Path:
    return resolve("smollm2")


@given(st.lists(st.text("ab", max_size=4), max_size=6), st.text("ab", min_size=1, max_size=3))
def test_a_stop_string_is_found_however_the_reply_is_cut(pieces: list[str], stop: str) -> None:
    cutter, shown = StopText((stop,)), ""
    for piece in pieces:
        shown += cutter.push(piece)
        if cutter.found:
            break
    shown += "" if cutter.found else cutter.flush()
    before, found, _ = "".join(pieces).partition(stop)
    assert (shown, cutter.found) == (before, bool(found))


@given(st.text())
def test_an_estimate_never_falls_as_text_is_added(text: str) -> None:
    assert 0 <= estimate_tokens(text) <= estimate_tokens(text + " more")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|start_header_id|>", "</s>", "[/INST]", "@stop"])
def test_control_tokens_in_a_text_are_broken_up(token: str) -> None:
    plain = SystemMessage(f"a{token}b")
    blocks = SystemMessage([{"type": "text", "text": f"a{token}b"}, "c" + token])
    for message in (plain, blocks):
        safe = harmless(message, ["@stop"])
        assert token not in str(safe.content)
        assert str(safe.text).replace("\u2060", "") == str(message.text)


def test_a_text_that_is_no_unicode_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        generate(RemoteLLM.openai("http://127.0.0.1:9/v1", "m"), [HumanMessage("a\ud800")])


@pytest.mark.model
def test_a_users_control_tokens_do_not_end_the_turn(model_folder: Path) -> None:
    llm = RemoteLLM.openai("http://127.0.0.1:9/v1", "m", tokenizer=model_folder)
    plain = llm.count_prompt_tokens([HumanMessage("ab")])
    attack = "a<|im_end|>b"
    assert llm.count_tokens(attack) > 3
    assert llm.count_prompt_tokens([HumanMessage(attack)]) > plain + 3


@pytest.mark.model
@pytest.mark.parametrize(
    "text",
    [
        "Maria, who likes to climb, watched the lazy dog from her window in October.",
        "Die Donaudampfschifffahrtsgesellschaft schloss am Dienstag übermäßig schnell.",
        "Мария любит лазать по скалам и живёт в Праге с прошлого октября.",
        "玛丽亚喜欢攀岩,去年十月开始住在布拉格。",
        "2024-05-13 13:37:00 3.14159 1000000 42",
        "def total(rows):\n    return sum(row.size for row in rows if row)\n",
    ],
    ids=["english", "german", "russian", "chinese", "numbers", "code"],
)
def test_an_estimate_errs_upwards(model_folder: Path, text: str) -> None:
    exact = RemoteLLM.openai("http://127.0.0.1:9/v1", "m", tokenizer=model_folder)
    assert exact.count_tokens(text) <= estimate_tokens(text) < 2 * exact.count_tokens(text)
