"""RemoteLLM against a real server: `transformers serve` with the embedded model, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from langchain_core.messages import HumanMessage
from palimpsest.errors import ContextOverflow, RemoteError
from palimpsest.llm.base import GenerationConfig, generate
from palimpsest.llm.catalog import resolve
from palimpsest.llm.remote import RemoteLLM

ASK = [HumanMessage("Say hello.")]


@pytest.fixture(scope="module")
def model_folder() -> Path:
    return resolve("smollm2")


@pytest.fixture(scope="module")
def served(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of `transformers serve` with the embedded model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model_folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=offline)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"`transformers serve` did not come up:\n{log.read_text()[-3000:]}")


def counted_by(url: str, text: str) -> int:
    """Tokens of the prompt as the server counts them."""
    body = {"max_tokens": 1, "messages": [{"role": "user", "content": text}]}
    reply = httpx.post(f"{url}/chat/completions", json=body, timeout=120, trust_env=False)
    return int(reply.raise_for_status().json()["usage"]["prompt_tokens"])


@pytest.mark.model
def test_a_served_model_streams_stops_and_is_cancelled(served: str, model_folder: Path) -> None:
    llm = RemoteLLM.openai(served, str(model_folder), tokenizer=model_folder)
    tokens = list(llm.stream(ASK, (), GenerationConfig(max_tokens=4)))
    words = [token.text for token in tokens if token.text]
    assert tokens[-1].finish == "length"
    assert 1 < len(words) <= 4
    stop = words[1]
    again = list(llm.stream(ASK, (), GenerationConfig(max_tokens=4, stop=(stop,))))
    assert "".join(token.text for token in again) == "".join(words).split(stop)[0]
    assert again[-1].finish == "stop"
    cancel = threading.Event()
    reply = llm.stream(ASK, (), GenerationConfig(max_tokens=200), cancel=cancel)
    assert next(reply).finish is None
    cancel.set()
    assert next(reply).finish == "cancelled"
    assert generate(llm, ASK, GenerationConfig(max_tokens=1)) == words[0]


@pytest.mark.model
def test_prompts_are_counted_as_the_server_counts_them(served: str, model_folder: Path) -> None:
    exact = RemoteLLM.openai(served, str(model_folder), tokenizer=model_folder)
    roughly = RemoteLLM.openai(served, str(model_folder))
    said = "Mariá lives at 12 Rue d'Été; she climbs. 🧗"
    count = counted_by(served, said)
    assert exact.count_prompt_tokens([HumanMessage(said)]) == count
    assert count <= roughly.count_prompt_tokens([HumanMessage(said)]) < 3 * count
    with pytest.raises(ContextOverflow, match="shorten"):
        small = RemoteLLM.openai(
            served, str(model_folder), tokenizer=model_folder, context_window=count
        )
        list(small.stream([HumanMessage(said)]))


@pytest.mark.model
def test_an_option_that_a_real_server_refuses_is_an_error_with_its_name(
    served: str, model_folder: Path
) -> None:
    with pytest.raises(RemoteError, match=r"422 .*top_k"):
        list(RemoteLLM.openai(served, str(model_folder)).stream(ASK, (), GenerationConfig(top_k=5)))
