"""A GGUF file becomes a folder that loads like any other."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from palimpsest.errors import ModelError, ModelNotFound
from palimpsest.llm.gguf import convert_gguf
from palimpsest.llm.local import LocalLLM
from tokenizers import pre_tokenizers

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
WIDTH, HIDDEN, HEADS = 32, 64, 4


def _write(path: Path) -> None:
    """A llama of one layer with tied embeddings, as llama.cpp lays it out."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        **{f"blk.0.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}": (HIDDEN, WIDTH) for part in ("gate", "up")},
        "blk.0.ffn_down": (WIDTH, HIDDEN),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_converted_file_loads_with_its_weights_template_and_end_token(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "tiny.gguf")
    folder = tmp_path / "staging" / "tiny"
    convert_gguf(tmp_path / "tiny.gguf", folder)
    assert capfd.readouterr() == ("", "")
    assert all(path.is_file() for path in folder.iterdir())

    llm = LocalLLM.load(folder, device="cpu")
    assert llm.context_window == 128
    assert llm.tokenizer.chat_template == TEMPLATE
    assert llm.tokenizer.eos_token == "</s>"
    random = np.random.default_rng(0)
    expected = torch.tensor(random.normal(size=(llm.model.config.vocab_size, WIDTH)))
    torch.testing.assert_close(llm.model.get_input_embeddings().weight.data, expected.float())
    assert llm.model.get_output_embeddings().weight is llm.model.get_input_embeddings().weight


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"none\.gguf does not exist"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "folder")


@pytest.mark.parametrize("size", [0, 3, 2000])
def test_a_damaged_file_is_an_error_and_leaves_nothing_behind(tmp_path: Path, size: int) -> None:
    whole, cut, folder = tmp_path / "tiny.gguf", tmp_path / "cut.gguf", tmp_path / "folder"
    _write(whole)
    cut.write_bytes(whole.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"cut\.gguf cannot be read"):
        convert_gguf(cut, folder)
    assert list(folder.iterdir()) == []
