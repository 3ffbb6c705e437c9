"""RemoteLLM against a small server on loopback that answers, or fails, on purpose."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from palimpsest.errors import (
    CapabilityError,
    ConfigError,
    ContextOverflow,
    PlaceError,
    RemoteError,
)
from palimpsest.llm.base import LLM, GenerationConfig, Token, generate
from palimpsest.llm.places import Logits
from palimpsest.llm.remote import RemoteLLM

KEY = "sk-a-very-secret-key"
ASK = [HumanMessage("Say hello.")]

Behaviour = Callable[["_Handler"], None]


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server that does with each request what `behave` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave: Behaviour = answer("Hello there")
        self.bodies: list[dict[str, Any]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.bodies.append(json.loads(self.rfile.read(length)))
        self.server.behave(self)

    def begin(self, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def event(self, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        self.wfile.write(f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n".encode())
        self.wfile.flush()

    def fail(self, status: int, message: str) -> None:
        body = json.dumps({"error": {"message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def answer(*pieces: str, finish: str | None = "stop") -> Behaviour:
    """Stream the pieces; without `finish`, close the connection as if the reply were whole."""

    def behave(handler: _Handler) -> None:
        handler.begin()
        for piece in pieces:
            handler.event({"content": piece})
        if finish:
            handler.event({}, finish)

    return behave


def refuse(status: int, message: str) -> Behaviour:
    return lambda handler: handler.fail(status, message)


def cut(handler: _Handler) -> None:
    handler.begin(Content_Length="100000")
    handler.event({"content": "Hello"})


def hang(handler: _Handler) -> None:
    handler.server.closing.wait(10)


def hang_after_a_piece(handler: _Handler) -> None:
    handler.begin()
    handler.event({"content": "Hello"})
    hang(handler)


def error_event(handler: _Handler) -> None:
    handler.begin()
    handler.event({"content": "Hello"})
    handler.wfile.write(b'data: {"error": {"message": "CUDA out of memory"}}\n\n')


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


def open_remote(url: str, **options: Any) -> RemoteLLM:
    return RemoteLLM.openai(url, "m", KEY, **({"timeout_s": 5.0, "max_retries": 0} | options))


def failure_of(url: str, **options: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        list(open_remote(url, **options).stream(ASK))
    return caught.value


def test_a_reply_arrives_piece_by_piece_and_says_why_it_ended(server: Server) -> None:
    server.behave = answer("Hel", "lo", finish="length")
    llm = open_remote(server.url)
    assert isinstance(llm, LLM)
    tokens = list(llm.stream(ASK))
    assert tokens == [Token("Hel"), Token("lo"), Token("", finish="length")]


def test_options_reach_the_server_and_those_it_may_not_know_only_if_set(server: Server) -> None:
    llm = open_remote(server.url)
    generate(llm, ASK)
    [body] = server.bodies
    assert (body["model"], body["temperature"], body["top_p"]) == ("m", 0.0, 1.0)
    assert body["max_tokens"] == body["max_completion_tokens"] == 256
    assert not {"top_k", "repetition_penalty", "seed", "stop", "stream_options"} & body.keys()
    config = GenerationConfig(
        max_tokens=7, temperature=0.5, top_k=9, repetition_penalty=1.2, seed=3, stop=("\n",)
    )
    generate(llm, ASK, config)
    sent = server.bodies[1]
    assert (sent["max_tokens"], sent["temperature"], sent["top_k"]) == (7, 0.5, 9)
    assert (sent["repetition_penalty"], sent["seed"], sent["stop"]) == (1.2, 3, ["\n"])


def test_a_stop_string_that_the_server_sends_is_cut_off(server: Server) -> None:
    server.behave = answer("one E", "N", "D two")
    llm = open_remote(server.url)
    tokens = list(llm.stream(ASK, (), GenerationConfig(stop=("END",))))
    assert "".join(token.text for token in tokens) == "one "
    assert tokens[-1].finish == "stop"


def test_a_beginning_of_a_stop_string_that_does_not_become_one_is_given(server: Server) -> None:
    server.behave = answer("one E", "N")
    assert generate(open_remote(server.url), ASK, GenerationConfig(stop=("END",))) == "one EN"


def test_cancelling_ends_the_reply_and_frees_the_server(server: Server) -> None:
    server.behave = answer("Hel", "lo", " you")
    cancel, texts = threading.Event(), []
    for token in open_remote(server.url).stream(ASK, cancel=cancel):
        texts.append(token.text)
        cancel.set()
    assert (texts, token.finish) == (["Hel", ""], "cancelled")


def test_a_reply_cancelled_beforehand_is_never_asked_for(server: Server) -> None:
    cancel = threading.Event()
    cancel.set()
    tokens = list(open_remote(server.url).stream(ASK, cancel=cancel))
    assert tokens == [Token("", finish="cancelled")]
    assert server.bodies == []


def test_tool_calls_come_with_the_last_token(server: Server) -> None:
    @tool
    def recall(query: str) -> str:
        """Look something up."""
        return query

    def call(handler: _Handler) -> None:
        handler.begin()
        function = {"name": "recall", "arguments": '{"query": '}
        handler.event({"tool_calls": [{"index": 0, "id": "7", "function": function}]})
        handler.event({"tool_calls": [{"index": 0, "function": {"arguments": '"Maria"}'}}]})
        handler.event({}, "tool_calls")

    server.behave = call
    *_, last = open_remote(server.url, tools=True).stream(ASK, tools=[recall])
    assert last.finish == "stop"
    [made] = last.tool_calls
    assert (made["name"], made["args"], made["id"]) == ("recall", {"query": "Maria"}, "7")
    assert server.bodies[0]["tools"][0]["function"]["name"] == "recall"
    with pytest.raises(CapabilityError, match="tools=True"):
        list(open_remote(server.url).stream(ASK, tools=[recall]))


def test_a_tool_call_that_is_not_json_is_an_error(server: Server) -> None:
    def call(handler: _Handler) -> None:
        handler.begin()
        function = {"name": "recall", "arguments": "{query: Maria"}
        handler.event({"tool_calls": [{"index": 0, "id": "7", "function": function}]})
        handler.event({}, "tool_calls")

    server.behave = call
    assert "called 'recall' with arguments that are no JSON object" in str(failure_of(server.url))


@pytest.mark.parametrize(
    ("behave", "what"),
    [
        (cut, "connection broke .*(incomplete|closed)"),
        (answer("Hello", finish=None), "ended before the reply did"),
        (hang_after_a_piece, "silent for longer than the timeout"),
        (error_event, "CUDA out of memory"),
    ],
    ids=["cut", "closed early", "hung", "error event"],
)
def test_a_server_that_dies_mid_stream_leaves_the_partial_reply(
    server: Server, behave: Behaviour, what: str
) -> None:
    server.behave = behave
    given_out = []
    with pytest.raises(RemoteError, match=what) as caught:
        for token in open_remote(server.url, timeout_s=0.5).stream(ASK):
            given_out.append(token.text)
    assert given_out == ["Hello"]
    assert caught.value.partial == "Hello"
    assert server.url in str(caught.value)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "see what it says"),
        (401, "check the API key"),
        (404, "often in /v1"),
        (429, "ask less often"),
        (500, "server's log"),
        (503, "server's log"),
    ],
)
def test_a_refusal_names_server_status_and_remedy(server: Server, status: int, remedy: str) -> None:
    server.behave = refuse(status, "no, because")
    error = failure_of(server.url)
    for part in (server.url, str(status), "no, because", remedy):
        assert part in str(error)
    assert error.partial == ""


def test_a_silent_server_runs_into_the_timeout(server: Server) -> None:
    server.behave = hang
    started = time.monotonic()
    assert "larger timeout_s" in str(failure_of(server.url, timeout_s=0.3))
    assert time.monotonic() - started < 5


def test_a_server_that_is_not_there_is_named() -> None:
    error = failure_of("http://127.0.0.1:9/v1")
    assert "http://127.0.0.1:9/v1 failed: it cannot be reached; start the server" in str(error)


def test_a_failing_server_is_asked_again_before_a_reply_has_begun(server: Server) -> None:
    def recover(handler: _Handler) -> None:
        server.behave = answer("Hello")
        handler.fail(503, "loading")

    server.behave = recover
    assert generate(open_remote(server.url, max_retries=1), ASK) == "Hello"
    assert len(server.bodies) == 2


def test_a_prompt_too_long_for_the_server_is_an_overflow(server: Server) -> None:
    server.behave = refuse(400, "This model's maximum context length is 4096 tokens")
    with pytest.raises(ContextOverflow, match=r"4096 tokens.*shorten it"):
        list(open_remote(server.url).stream(ASK))


def test_the_api_key_appears_in_no_error_repr_or_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.behave = refuse(401, f"Incorrect API key provided: {KEY}")
    with caplog.at_level(logging.INFO):
        error = failure_of(server.url)
    assert error.__cause__ is None and error.__suppress_context__
    assert "Incorrect API key provided: ***" in str(error)
    for shown in (str(error), repr(error), repr(open_remote(server.url)), caplog.text):
        assert KEY not in shown


def test_a_contribution_of_another_place_is_refused(server: Server) -> None:
    memory = Logits(memory="longmem", process=lambda ids, logits: logits)
    with pytest.raises(PlaceError, match="'longmem' enters at 'logits'"):
        list(open_remote(server.url).stream(ASK, [memory]))
    assert server.bodies == []


def test_a_served_model_scores_no_texts(server: Server) -> None:
    with pytest.raises(CapabilityError, match="log-probabilities"):
        open_remote(server.url).logprobs(ASK, ["Hello"])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://u:pw@host"])
def test_a_url_that_is_none_or_has_a_user_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url=") as caught:
        RemoteLLM.openai(url, "m")
    assert "pw" not in str(caught.value)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_openai", None)
    with pytest.raises(ConfigError, match=r"palimpsest\[remote\]"):
        RemoteLLM.openai("http://127.0.0.1:9/v1", "m")


def test_any_langchain_chat_model_will_do() -> None:
    chat = GenericFakeChatModel(messages=iter([AIMessage("Hello there")]))
    llm = RemoteLLM(chat, name="fake", context_window=100, finish_key=None)
    assert generate(llm, ASK) == "Hello there"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a tokenizer\.json"):
        open_remote("http://127.0.0.1:9/v1", tokenizer=tmp_path)
