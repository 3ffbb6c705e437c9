"""Log-probabilities, entropy and hidden states against a plain forward pass."""

from __future__ import annotations

import pytest
import torch
from langchain_core.messages import HumanMessage
from palimpsest.errors import ConfigError, ContextOverflow, InputError
from palimpsest.llm import decoding, scoring
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.prompting import PromptEncoder
from torch import Tensor

ASK = [HumanMessage("What is the capital of France?")]
ANSWERS = ["Paris", "The capital of France is Paris.", "", "bananas and 🍐", "L", *"abcdefg"]


def _logprobs(llm: LocalLLM, ids: list[int]) -> Tensor:
    with torch.no_grad():
        rows: Tensor = llm.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return rows


def _plain(llm: LocalLLM, answer: str) -> float:
    prompts = PromptEncoder(llm.tokenizer)
    prompt, rest = prompts.prompt(ASK), prompts.text(answer)
    rows = _logprobs(llm, prompt + rest)
    return sum(float(rows[len(prompt) + i - 1, id]) for i, id in enumerate(rest))


def test_continuations_score_as_in_a_plain_forward(
    tiny_llm: LocalLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [_plain(tiny_llm, answer) for answer in ANSWERS]
    assert tiny_llm.logprobs(ASK, ANSWERS) == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(decoding, "CHUNK", 5)
    monkeypatch.setattr(scoring, "_BATCH", 3)
    monkeypatch.setattr(scoring, "_WINDOW", 4)
    assert tiny_llm.logprobs(ASK, ANSWERS) == pytest.approx(expected, abs=1e-3)
    assert tiny_llm.logprobs(ASK, []) == []
    assert tiny_llm.logprobs(ASK, [""]) == [0.0]


@pytest.mark.model
def test_the_embedded_model_scores_as_in_a_plain_forward_and_prefers_the_truth(
    smollm2: LocalLLM,
) -> None:
    answers = ["Paris", "Berlin is the capital", "a banana"]
    scores = smollm2.logprobs(ASK, answers)
    assert scores == pytest.approx([_plain(smollm2, answer) for answer in answers], abs=1e-3)
    assert scores[0] == max(scores)


def test_entropy_is_that_of_the_next_token(tiny_llm: LocalLLM) -> None:
    prompts = PromptEncoder(tiny_llm.tokenizer)
    for prefix in ("", "It is "):
        last = _logprobs(tiny_llm, prompts.prompt(ASK) + prompts.text(prefix))[-1]
        expected = -float((last.exp() * last).sum())
        assert tiny_llm.entropy(ASK, prefix) == pytest.approx(expected, abs=1e-4)


@pytest.mark.model
def test_a_model_is_surer_in_the_middle_of_a_name(smollm2: LocalLLM) -> None:
    assert 0 < smollm2.entropy(ASK, "The capital of Fr") < smollm2.entropy(ASK)


def test_a_texts_tokens_score_as_in_a_plain_forward(tiny_llm: LocalLLM) -> None:
    text = "A short text, é 🙂"
    ids = PromptEncoder(tiny_llm.tokenizer).text(text)
    rows = _logprobs(tiny_llm, ids)
    expected = torch.stack([rows[i, id] for i, id in enumerate(ids[1:])])
    scores = tiny_llm.text_logprobs(text)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_a_text_of_one_token_has_nothing_to_score(tiny_llm: LocalLLM) -> None:
    with pytest.raises(InputError, match=r"text='a' has 1 tokens"):
        tiny_llm.text_logprobs("a")


@pytest.mark.parametrize("budget", [4096, 10])
def test_hidden_states_are_those_of_each_text_alone(
    tiny_llm: LocalLLM, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(scoring, "_PADDED_TOKENS", budget)
    texts = ["short", "a longer text 🙂", "", "mid"]
    last, several = tiny_llm.hidden_states(texts), tiny_llm.hidden_states(texts, [0, 1, -1])
    for text, final, layers in zip(texts, last, several, strict=True):
        ids = PromptEncoder(tiny_llm.tokenizer).text(text)
        assert final.shape == (len(ids), 64)
        assert layers.shape == (3, len(ids), 64)
        if ids:
            with torch.no_grad():
                alone = tiny_llm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            torch.testing.assert_close(final, alone[-1][0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(layers[1], alone[1][0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(layers[2], final)
    assert tiny_llm.hidden_states([]) == []


def test_hidden_states_can_be_trained_on(tiny_llm: LocalLLM) -> None:
    head = torch.nn.Linear(64, 1)
    head(tiny_llm.hidden_states(["text"])[0]).sum().backward()
    assert head.weight.grad is not None


def test_a_layer_that_is_not_there_is_refused(tiny_llm: LocalLLM) -> None:
    with pytest.raises(ConfigError, match=r"layers has 3, and must lie within 0\.\.2"):
        tiny_llm.hidden_states(["a"], [3])


def test_what_exceeds_the_window_is_refused(tiny_llm: LocalLLM) -> None:
    room = 256 - tiny_llm.count_prompt_tokens(ASK)
    assert tiny_llm.logprobs(ASK, ["x" * room])
    assert len(tiny_llm.hidden_states(["x" * 256])[0]) == 256
    for call in (
        lambda: tiny_llm.logprobs(ASK, ["x", "x" * (room + 1)]),
        lambda: tiny_llm.entropy(ASK, "x" * (room + 1)),
        lambda: tiny_llm.text_logprobs("x" * 257),
        lambda: tiny_llm.hidden_states(["x", "x" * 257]),
    ):
        with pytest.raises(ContextOverflow):
            call()
