"""Decoding: the same ids as transformers' own loop, and everything a caller can ask of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from palimpsest.errors import OutOfMemory
from palimpsest.llm import decoding
from palimpsest.llm.base import GenerationConfig, Token, generate
from palimpsest.llm.decoding import sampler
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.places import Logits
from palimpsest.llm.prompting import PromptEncoder

ASK = [HumanMessage("Say something.")]
CAPITAL = [SystemMessage("You are helpful."), HumanMessage("What is the capital of France?")]
WARM = GenerationConfig(max_tokens=20, temperature=1.5, seed=7)


def _ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens if token.id is not None]


def _text(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def _transformers_own(llm: LocalLLM, messages: Sequence[BaseMessage], count: int) -> list[int]:
    prompt = torch.tensor([PromptEncoder(llm.tokenizer).prompt(messages)])
    whole = llm.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
    )
    ids: list[int] = whole[0, prompt.shape[1] :].tolist()
    return ids


def _only(text_id: int) -> Logits:
    """The next token is always this one."""

    def process(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(logits, -100.0)
        forced[:, text_id] = 0.0
        return forced

    return Logits(memory="only", process=process)


def _spell(llm: LocalLLM, text: str) -> Logits:
    """The reply is `text`, then the end of the turn."""
    script = iter([*llm.tokenizer.encode(text), llm.tokenizer.eos_token_id])
    return Logits(
        memory="spell", process=lambda ids, logits: _only(next(script)).process(ids, logits)
    )


@pytest.mark.model
def test_greedy_text_is_that_of_transformers(smollm2: LocalLLM) -> None:
    config = GenerationConfig(max_tokens=24)
    tokens = list(smollm2.stream(CAPITAL, (), config))
    own = _transformers_own(smollm2, CAPITAL, 24)
    assert _ids(tokens) == own
    assert _text(tokens) == smollm2.tokenizer.decode(own, skip_special_tokens=True)
    assert "Paris" in _text(tokens)
    assert tokens[-1].finish == "stop"
    assert all(token.finish is None for token in tokens[:-1])
    assert generate(smollm2, CAPITAL, config) == _text(tokens)


def test_greedy_ids_are_those_of_transformers_on_a_random_model(tiny_llm: LocalLLM) -> None:
    tokens = list(tiny_llm.stream(ASK, (), GenerationConfig(max_tokens=30)))
    assert _ids(tokens) == _transformers_own(tiny_llm, ASK, 30)


def test_a_prompt_read_in_chunks_gives_the_same_reply(
    tiny_llm: LocalLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [HumanMessage("x" * 100)]
    whole = list(tiny_llm.stream(messages, (), GenerationConfig(max_tokens=20)))
    monkeypatch.setattr(decoding, "CHUNK", 7)
    chunked = list(tiny_llm.stream(messages, (), GenerationConfig(max_tokens=20)))
    assert _ids(chunked) == _ids(whole)
    assert [t.logprob for t in chunked] == pytest.approx([t.logprob for t in whole], abs=1e-4)


def test_logprobs_are_the_models_own_whatever_the_sampling_options(tiny_llm: LocalLLM) -> None:
    tokens = list(tiny_llm.stream(ASK, (), WARM))
    prompt = PromptEncoder(tiny_llm.tokenizer).prompt(ASK)
    row = torch.tensor([prompt + _ids(tokens)])
    with torch.no_grad():
        every = tiny_llm.model(row).logits[0].log_softmax(-1)
    expected = [float(every[len(prompt) + i - 1, id]) for i, id in enumerate(_ids(tokens))]
    assert [token.logprob for token in tokens] == pytest.approx(expected, abs=1e-4)


def test_a_seed_repeats_a_reply_and_no_seed_does_not(tiny_llm: LocalLLM) -> None:
    one, same = (_ids(list(tiny_llm.stream(ASK, (), WARM))) for _ in range(2))
    assert one == same
    other = GenerationConfig(max_tokens=20, temperature=1.5, seed=8)
    assert _ids(list(tiny_llm.stream(ASK, (), other))) != one
    fresh = GenerationConfig(max_tokens=20, temperature=1.5)
    assert len({tuple(_ids(list(tiny_llm.stream(ASK, (), fresh)))) for _ in range(3)}) > 1


def test_sampling_leaves_the_processs_randomness_alone(tiny_llm: LocalLLM) -> None:
    before = torch.random.get_rng_state()
    list(tiny_llm.stream(ASK, (), GenerationConfig(max_tokens=5, temperature=1.0)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("config", "possible"),
    [
        (GenerationConfig(temperature=1.0), {0, 1, 2, 3}),
        (GenerationConfig(temperature=1.0, top_k=2), {2, 3}),
        (GenerationConfig(temperature=1.0, top_p=0.6), {3}),
        (GenerationConfig(temperature=0.01), {3}),
        (GenerationConfig(), {3}),
        (GenerationConfig(repetition_penalty=4.0), {2}),
    ],
)
def test_options_cut_the_distribution_as_they_say(
    config: GenerationConfig, possible: set[int]
) -> None:
    choose = sampler(config, torch.device("cpu"))
    logits = torch.tensor([[1.0, 1.2, 1.5, 3.0]])
    seen = torch.tensor([[3]])
    assert {int(choose(seen, logits.clone())) for _ in range(300)} == possible


def test_a_reply_stops_at_max_tokens(tiny_llm: LocalLLM) -> None:
    a = tiny_llm.tokenizer.convert_tokens_to_ids("a")
    tokens = list(tiny_llm.stream(ASK, [_only(a)], GenerationConfig(max_tokens=3)))
    assert [(t.text, t.finish) for t in tokens] == [("a", None), ("a", None), ("a", "length")]


def test_a_reply_is_clipped_to_the_room_in_the_window(tiny_llm: LocalLLM) -> None:
    a = tiny_llm.tokenizer.convert_tokens_to_ids("a")
    used = tiny_llm.count_prompt_tokens(ASK)
    tokens = list(tiny_llm.stream(ASK, [_only(a)], GenerationConfig(max_tokens=10_000)))
    assert len(tokens) == 256 - used
    assert tokens[-1].finish == "length"


def test_every_end_token_of_the_generation_config_ends_a_reply(tiny_llm: LocalLLM) -> None:
    tiny_llm.model.generation_config.eos_token_id = [1, 50]
    (token,) = tiny_llm.stream(ASK, [_only(50)])
    assert (token.text, token.id, token.finish) == ("", 50, "stop")


@pytest.mark.parametrize(
    ("reply", "stop", "shown", "finish"),
    [
        ("one###two", ("###",), "one", "stop"),
        ("one##two", ("###",), "one##two", "stop"),
        ("one##", ("###",), "one##", "stop"),
        ("x👍y", ("y",), "x👍", "stop"),
    ],
)
def test_a_stop_string_ends_the_reply_and_is_not_part_of_it(
    tiny_llm: LocalLLM, reply: str, stop: tuple[str, ...], shown: str, finish: str
) -> None:
    config = GenerationConfig(stop=stop)
    tokens = list(tiny_llm.stream(ASK, [_spell(tiny_llm, reply)], config))
    assert _text(tokens) == shown
    assert tokens[-1].finish == finish
    assert not any("\ufffd" in token.text for token in tokens)


def test_held_back_text_is_shown_when_the_length_ends_the_reply(tiny_llm: LocalLLM) -> None:
    config = GenerationConfig(stop=("###",), max_tokens=3)
    tokens = list(tiny_llm.stream(ASK, [_spell(tiny_llm, "a##b")], config))
    assert [(t.text, t.finish) for t in tokens] == [("a", None), ("", None), ("##", "length")]


def test_a_cancelled_reply_ends_before_its_next_token(tiny_llm: LocalLLM) -> None:
    cancel = threading.Event()
    tokens = []
    for token in tiny_llm.stream(ASK, [_spell(tiny_llm, "abcdef")], cancel=cancel):
        tokens.append(token)
        if len(tokens) == 2:
            cancel.set()
    assert [(t.text, t.finish) for t in tokens] == [("a", None), ("b", None), ("", "cancelled")]


def test_a_reply_cancelled_before_it_begins_reads_no_prompt(
    tiny_llm: LocalLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = threading.Event()
    cancel.set()
    monkeypatch.setattr(tiny_llm.model, "forward", None)
    assert list(tiny_llm.stream(ASK, cancel=cancel)) == [Token("", finish="cancelled")]


def test_a_closed_stream_gives_the_model_back(tiny_llm: LocalLLM) -> None:
    stream = tiny_llm.stream(ASK)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]  # a generator, as every stream here
    assert list(tiny_llm.stream(ASK, (), GenerationConfig(max_tokens=2)))


def test_requests_of_many_threads_take_turns_and_do_not_mix(tiny_llm: LocalLLM) -> None:
    texts = [f"{digit}" * 12 for digit in range(6)]

    def reply(text: str) -> str:
        tiny_llm.count_tokens(text)
        tokens = list(tiny_llm.stream([HumanMessage(text)], [_spell(tiny_llm, text)]))
        tiny_llm.count_prompt_tokens([HumanMessage(text)])
        return _text(tokens)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(reply, texts * 3)) == texts * 3


def test_a_request_waits_while_another_generates(tiny_llm: LocalLLM) -> None:
    stream = tiny_llm.stream(ASK, [_spell(tiny_llm, "abc")])
    next(iter(stream))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tiny_llm.entropy, ASK)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.2)
        list(stream)
        assert waiting.result(timeout=30) > 0


def test_a_device_without_room_is_reported_and_left_clean(tiny_llm: LocalLLM) -> None:
    greedy = Logits(memory="greedy", process=lambda ids, logits: logits + torch.empty(2**60))
    with pytest.raises(OutOfMemory, match=r"\d+ tokens on cpu"):
        next(iter(tiny_llm.stream(ASK, [greedy])))
    assert list(islice(tiny_llm.stream(ASK), 2))
