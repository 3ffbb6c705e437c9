"""Servers and models that many tests share.

Models called `tiny` have random weights: only shapes matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.vectors import Embedder, open_embedder

from .servers import Servers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Chroma and PostgreSQL, each started when first asked for."""
    with closing(Servers(tmp_path_factory.mktemp("servers"))) as made:
        yield made


@pytest.fixture(scope="session")
def smollm2() -> LocalLLM:
    """The embedded model. Read-only: what a test attaches, it takes off."""
    from palimpsest.llm.catalog import resolve

    return LocalLLM.load(resolve("smollm2"), device="cpu", name="smollm2")


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The embedded sentence encoder, with its cache."""
    return open_embedder("minilm")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers and a byte-level vocabulary, saved as any model is."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: id for id, text in enumerate([*special, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_llm(tiny_folder: Path) -> LocalLLM:
    """A fresh LocalLLM of that model: a window of 256 tokens, one byte each."""
    return LocalLLM.load(tiny_folder, device="cpu", name="tiny")
