"""An endless session on a live KV cache: what a follow-up costs, and what forgetting leaves.

The tiny model has random weights, so whatever it reads differently, it answers differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from cProfile import Profile
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from palimpsest import Agent, GenerationConfig
from palimpsest.errors import CapabilityError, ConfigError, OutOfMemory, PlaceError
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.places import Cache
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Record
from palimpsest.memory.retention import RetentionCache, open_policy, read
from palimpsest.memory.retention.near import NearLayer

OpenAgent = Callable[..., Agent]
SPEC = "sirllm:budget=512,decay=0.9"
SYSTEM = "Be brief."
FIRST, SECOND, THIRD = "My locker code is heron.", "Rainbows have seven colours.", "What is it?"


@pytest.fixture
def tiny_llm(tiny_llm: LocalLLM) -> LocalLLM:
    """That says letters only, so that every turn has a reply to be kept; and listens."""
    letters = tiny_llm.tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
    silent = [id for id in range(len(tiny_llm.tokenizer)) if id not in letters]
    with torch.no_grad():
        tiny_llm.model.get_output_embeddings().weight[silent] = 0
        for name, weight in tiny_llm.model.named_parameters():
            if "self_attn" in name:
                weight *= 12
    return tiny_llm


@pytest.fixture
def open_agent(tiny_llm: LocalLLM, tmp_path: Path) -> Iterator[OpenAgent]:
    """Agents on one data folder; each is closed before the next opens."""
    opened: list[Agent] = []

    def open_one(*memories: str, home: str = "home", **options: Any) -> Agent:
        while opened:
            opened.pop().close()
        agent = Agent.open(
            options.pop("model", tiny_llm),
            home=tmp_path / home,
            memories=memories or [SPEC],
            embedder=HashingEmbedder(),
            system=SYSTEM,
            generation=GenerationConfig(max_tokens=6, **options.pop("how", {})),
            **options,
        )
        opened.append(agent)
        return agent

    yield open_one
    while opened:
        opened.pop().close()


def account(agent: Agent, session: str = "main", memory: int = 0) -> dict[str, Any]:
    """What the cache said of itself in the session's last turn."""
    return dict(agent.why(session=session).memories[memory].explain)


def caches(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home").rglob("*.safetensors"))


def test_a_follow_up_reads_only_its_own_tokens(open_agent: OpenAgent, tiny_llm: LocalLLM) -> None:
    agent = open_agent()
    agent.ask(FIRST)
    first = account(agent)
    assert first["tokens_read"] == first["tokens_seen"]
    whole = tiny_llm.count_prompt_tokens([SystemMessage(SYSTEM), HumanMessage(FIRST)])
    assert first["tokens_read"] == whole + 5  # of six sampled tokens, the last is not read yet
    for question in (SECOND, THIRD):
        agent.ask(question)
        alone = [HumanMessage("x"), AIMessage("y"), HumanMessage(question)]
        own = tiny_llm.count_prompt_tokens(alone) - tiny_llm.count_prompt_tokens(
            [HumanMessage("x")]
        )
        frame = tiny_llm.count_tokens("y")
        assert account(agent)["tokens_read"] == own - frame + 1 + 5


def test_its_answers_are_those_of_one_uninterrupted_cache(
    open_agent: OpenAgent, tiny_llm: LocalLLM
) -> None:
    agent = open_agent()
    questions = (FIRST, SECOND, THIRD)
    answers = [agent.ask(each).text for each in questions]
    assert answers == uninterrupted(tiny_llm, questions)
    assert len(set(answers)) > 1


def uninterrupted(llm: LocalLLM, questions: Sequence[str]) -> list[str]:
    """Greedy replies of six tokens, from one cache that is read turn by turn, by hand."""
    model, tokenizer = llm.model, llm.tokenizer
    cache = RetentionCache(model, open_policy(SPEC))
    said = [f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"]
    answers = []
    for question in questions:
        said.append(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        ids = tokenizer("".join(said), return_tensors="pt", add_special_tokens=False).input_ids
        cache.begin_turn()
        reply: list[int] = []
        while len(reply) < 6:
            logits = read(model, cache, ids)
            assert logits is not None
            reply.append(int(logits.argmax()))
            if reply[-1] == tokenizer.eos_token_id:
                break
            ids = torch.tensor([reply[-1:]])
        ended = reply[-1] == tokenizer.eos_token_id
        answers.append(tokenizer.decode(reply, skip_special_tokens=True))
        said = [] if ended else [tokenizer.decode(reply[-1:])]
        said.append("<|im_end|>\n")
    return answers


def test_a_session_goes_on_from_its_file_after_the_agent_was_closed(
    open_agent: OpenAgent, tmp_path: Path
) -> None:
    agent = open_agent(home="other")
    expected = [agent.ask(each).text for each in (FIRST, SECOND, THIRD)]
    agent = open_agent()
    agent.ask(FIRST)
    agent = open_agent()
    assert len(caches(tmp_path)) == 1
    agent.ask(SECOND)
    again = account(agent)
    assert again["messages_to_read"] == 0 and again["tokens_read"] < again["tokens_seen"]
    assert agent.ask(THIRD).text == expected[2]


def test_without_its_file_a_session_is_read_again_from_what_was_said(
    open_agent: OpenAgent, tmp_path: Path
) -> None:
    agent = open_agent(home="other")
    for each in (FIRST, SECOND):
        agent.ask(each)
    expected = agent.ask(THIRD).text
    agent = open_agent()
    for each in (FIRST, SECOND):
        agent.ask(each)
    agent.close()
    for path in caches(tmp_path):
        path.unlink()
    agent = open_agent()
    told = agent.ask(THIRD)
    assert account(agent)["messages_to_read"] == 4
    assert account(agent)["tokens_read"] == account(agent)["tokens_seen"]
    assert told.text == expected


def test_a_file_of_another_policy_or_cut_short_is_read_anew(
    open_agent: OpenAgent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_agent().ask(FIRST)
    agent = open_agent("sirllm:budget=256")
    agent.ask(SECOND)
    assert account(agent)["messages_to_read"] == 2
    agent.close()
    [path] = caches(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    agent = open_agent("sirllm:budget=256")
    agent.ask(THIRD)
    assert account(agent)["messages_to_read"] == 4 and "cannot be read" in caplog.text


def test_what_is_forgotten_leaves_the_cache_in_memory_and_on_disk(
    open_agent: OpenAgent, tmp_path: Path
) -> None:
    agent = open_agent()
    agent.ask(FIRST)
    agent.ask(SECOND, session="other")
    agent = open_agent()
    assert len(caches(tmp_path)) == 2
    report = agent.forget("heron")
    assert report.residue == 0 and len(caches(tmp_path)) == 1
    agent.ask(THIRD)
    assert account(agent)["messages_to_read"] == 0
    fresh = open_agent(home="fresh")
    expected = fresh.ask(THIRD).text
    agent = open_agent()
    assert agent.turns(1)[0].reply.text == expected  # type: ignore[union-attr]


def test_what_was_forgotten_is_read_again_without_it_between_turns(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.ask(FIRST)
    agent.ask(SECOND)
    agent.forget("heron")
    assert agent.memories[0].due() and agent.derive() == 0
    assert not agent.memories[0].due()
    agent.ask(THIRD)
    assert account(agent)["messages_to_read"] == 0
    assert account(agent)["tokens_read"] < account(agent)["tokens_seen"]


def test_an_answer_given_again_comes_from_the_cache_before_it(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.ask(FIRST)
    first = agent.ask(SECOND)
    seen = account(agent)["tokens_seen"]
    assert agent.regenerate().text == first.text
    assert account(agent)["tokens_seen"] == seen and account(agent)["messages_to_read"] == 0
    agent = open_agent(how={"seed": 1, "temperature": 9.0})
    other = agent.regenerate()
    assert other.text != first.text  # read anew: the file holds the reply that is superseded
    expected = agent.ask(THIRD).text
    assert account(agent)["messages_to_read"] == 0
    assert expected


def test_an_answer_given_a_third_time_comes_from_the_same_cache(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.ask(FIRST)
    agent.ask(SECOND)
    for _ in range(2):
        agent.regenerate()
        assert account(agent)["messages_to_read"] == 0
        assert account(agent)["tokens_read"] < account(agent)["tokens_seen"]
    agent.ask(THIRD)
    assert account(agent)["messages_to_read"] == 0


def test_a_turn_of_a_long_session_does_and_notes_no_more_than_one_of_a_short(
    open_agent: OpenAgent,
) -> None:
    agent = open_agent("sinks:budget=64")
    agent.ask(FIRST)
    scope, store = agent.turns(1)[0].user.scope, agent.memories[0]
    calls, sizes = [], []
    for more in (2, 400):
        agent.ledger.append([Record(text="Yes.", scope=scope) for _ in range(more)])
        agent._loop.follow()
        agent.read_ahead()
        agent.ask(SECOND)
        with Profile() as work:
            agent.ask(SECOND)
        sizes.append(len(json.dumps(agent.why().to_json())))
        message = _heard(agent)
        agent._loop.follow()
        cue = agent._loop.cue(_request(agent), message, 100)
        with Profile() as recall:
            assert isinstance(store.recall(cue), Cache)
        calls.append([sum(each.callcount for each in p.getstats()) for p in (recall, work)])
    (short, turn), (long, turn_of_long) = calls
    assert long < short * 1.1 and turn_of_long < turn * 1.3 and sizes[1] < sizes[0] + 50


def test_a_turn_that_ran_out_of_memory_while_it_evicted_leaves_the_cache_before_it(
    open_agent: OpenAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = open_agent("sinks:budget=64")
    agent.ask(FIRST)
    before = account(agent)
    evict, evicted = NearLayer.evict, count()

    def full(layer: NearLayer, *how: Any) -> None:
        if next(evicted) == 1:  # one layer has evicted
            raise MemoryError
        evict(layer, *how)

    with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
        patch.setattr(NearLayer, "evict", full)
        agent.ask(SECOND)
    agent.ask(SECOND)
    now = account(agent)
    assert now["messages_to_read"] == 1
    assert now["tokens_seen"] == before["tokens_seen"] + now["tokens_read"]


def test_a_row_that_is_corrected_or_told_late_is_noticed_in_a_session_that_goes_on(
    open_agent: OpenAgent,
) -> None:
    agent = open_agent("sinks:budget=256")
    fact = agent.remember("The code is heron.", session="main")
    for _ in range(2):
        agent.ask(SECOND)
        assert account(agent)["messages_to_read"] <= 1
    pieces = agent.stream(THIRD)
    next(pieces)
    agent.remember("Owls hoot.", session="main")  # between a message and its reply
    list(pieces)
    agent.ask(SECOND)
    assert account(agent)["messages_to_read"] == 1
    agent.correct(fact.id, "The code is owl.", session="main")
    agent.ask(SECOND)
    assert account(agent)["messages_to_read"] > 5
    assert account(agent)["tokens_read"] == account(agent)["tokens_seen"]


def test_beside_a_prompt_memory_an_answer_given_again_stays_in_the_cache(
    open_agent: OpenAgent,
) -> None:
    agent = open_agent("scm:gate=always,flash_turns=0", "sinks:budget=1024")
    agent.ask(FIRST)
    agent.ask(SECOND)
    agent.regenerate()
    seen = account(agent, memory=1)["tokens_seen"]
    agent.ask(THIRD)
    told = account(agent, memory=1)
    assert told["messages_to_read"] == 0 and told["tokens_seen"] == seen + told["tokens_read"]


def test_a_cancelled_turn_leaves_a_usable_cache_and_what_was_said(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.ask(FIRST)
    pieces = agent.stream(SECOND)
    said = str(next(pieces)) + str(next(pieces))
    pieces.close()
    assert agent.turns(1)[0].reply.text == said  # type: ignore[union-attr]
    agent.ask(THIRD)
    assert account(agent)["messages_to_read"] == 0
    cancel = Event()
    cancel.set()
    agent.ask("Never read.", cancel=cancel)
    agent.ask(THIRD)
    assert account(agent)["messages_to_read"] == 1  # heard, and not answered


def test_sessions_beyond_the_limit_go_to_files_and_come_back(
    open_agent: OpenAgent, tmp_path: Path
) -> None:
    agent = open_agent("sinks:budget=256,live=1")
    agent.ask(FIRST, session="a")
    agent.ask(SECOND, session="b")
    assert len(caches(tmp_path)) == 1
    agent.ask(THIRD, session="a")
    assert account(agent, "a")["messages_to_read"] == 0
    assert account(agent, "a")["tokens_read"] < account(agent, "a")["tokens_seen"]


def test_a_session_and_a_message_may_be_longer_than_the_window(open_agent: OpenAgent) -> None:
    agent = open_agent("sinks:budget=128")
    agent.ask("Rainbows have seven colours. " * 30)
    for _ in range(3):
        agent.ask(SECOND)
    told = account(agent)
    assert told["tokens_seen"] > 900 and told["tokens_stored"] <= 128


def test_notes_of_another_memory_stand_around_the_message_and_go_with_it(
    open_agent: OpenAgent, tmp_path: Path
) -> None:
    agent = open_agent("scm:gate=always,flash_turns=0", "sinks:budget=1024")
    agent.remember("Heron is my locker code.", session="facts")
    agent.ask("Heron?", session="talk")
    agent.ask(SECOND, session="talk")
    assert agent.why(session="talk").records
    agent = open_agent("scm:gate=always,flash_turns=0", "sinks:budget=1024")
    assert len(caches(tmp_path)) == 1
    report = agent.forget("locker")
    assert report.residue == 0 and not caches(tmp_path)


def test_a_turn_with_tools_is_read_again_from_what_may_be_kept(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.ask(FIRST)
    message = _heard(agent)
    agent._loop.follow()
    reading = agent.memories[0].recall(agent._loop.cue(_request(agent), message, 100))
    for _ in range(2):  # a call, and the answer to what the tool said
        list(agent.llm.stream([HumanMessage(SECOND)], [reading], agent.generation))
    agent.ask(THIRD)
    assert account(agent)["messages_to_read"] == 1


def _request(agent: Agent) -> Any:
    from palimpsest.agent.request import Request

    scope = agent.turns(1)[0].user.scope
    return Request(message=SECOND, scope=scope, generation=agent.generation)


def _heard(agent: Agent) -> Any:
    return agent._loop.hear(_request(agent))


def test_a_fork_reads_what_it_shares(open_agent: OpenAgent) -> None:
    agent = open_agent()
    agent.ask(FIRST, session="monday")
    agent.fork("monday", "tuesday")
    agent.ask(SECOND, session="tuesday")
    assert account(agent, "tuesday")["messages_to_read"] == 2
    agent.ask(THIRD, session="tuesday")
    assert account(agent, "tuesday")["messages_to_read"] == 0


def test_a_document_is_read_into_the_session_and_cancelled_without_loss(
    open_agent: OpenAgent, tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Line {n}: herons nest in willows." for n in range(60)))
    agent = open_agent("sinks:budget=128")
    agent.ingest(book, session="book")
    cancel = Event()
    steps: list[tuple[int, int]] = []

    def progress(done: int, expected: int) -> None:
        steps.append((done, expected))
        if done > expected // 2:
            cancel.set()

    [half] = agent.read_ahead(session="book", progress=progress, cancel=cancel).values()
    assert half["tokens_read"] == steps[-1][0] < steps[-1][1]
    agent = open_agent("sinks:budget=128")
    [rest] = agent.read_ahead(session="book").values()
    assert rest["tokens_read"] == steps[-1][1] - steps[-1][0] and rest["tokens_stored"] <= 128
    assert agent.read_ahead(session="book")["sinks"]["tokens_seen"] == rest["tokens_seen"]
    agent.ask(THIRD, session="book")
    assert account(agent, "book")["messages_to_read"] == 0


def test_it_is_refused_when_the_agent_is_built(open_agent: OpenAgent, tiny_llm: LocalLLM) -> None:
    with pytest.raises(PlaceError, match="'sirllm' enters at 'cache'"):
        open_agent(model=ScriptedLLM(lambda messages: ""))
    with pytest.raises(CapabilityError, match="rotary"):
        open_agent(model=_without_rotary(tiny_llm))
    for spec, what in (
        ("sirllm:budget=3", "budget"),
        ("sirllm:wings=2", "no option 'wings'"),
        ("sirllm:budget=many", "many"),
        ("sirllm:live=0", "live=0"),
        ("sirllm:format=gold", "gold"),
        ("lm_infinite:format=int8", "int8"),
    ):
        with pytest.raises(ConfigError, match=what):
            open_agent(spec)


@pytest.mark.parametrize(
    "spec",
    ["full", "infllm:window=64,sinks=4,block=16,k=2,stride=16", "sinks:budget=512,format=int8"],
)
def test_every_policy_and_format_goes_on_from_its_file(
    open_agent: OpenAgent, tmp_path: Path, spec: str
) -> None:
    for question in (FIRST, SECOND):
        agent = open_agent(spec)
        agent.ask(question)
    assert account(agent)["messages_to_read"] == 0
    assert account(agent)["tokens_read"] < account(agent)["tokens_seen"]
    assert len(caches(tmp_path)) == 1


def _without_rotary(llm: LocalLLM) -> LocalLLM:
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"vocab_size": len(llm.tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=1))
    return LocalLLM(model.eval(), llm.tokenizer, name="gpt2")


def test_the_embedded_model_goes_on_where_it_was(smollm2: LocalLLM, tmp_path: Path) -> None:
    how: dict[str, Any] = {"home": tmp_path, "memories": ["sirllm:budget=512"]}
    short = GenerationConfig(max_tokens=12)
    with Agent.open(smollm2, generation=short, **how) as agent:
        agent.ask("My locker code is heron. Remember it.")
    with Agent.open(smollm2, generation=short, **how) as agent:
        told = agent.ask("What is my locker code?")
        assert "heron" in told.text.lower()
        assert account(agent)["tokens_read"] < 40 < account(agent)["tokens_seen"]
