"""Loading a folder, and what is said when it cannot be loaded."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from palimpsest.errors import ConfigError, ModelError, ModelNotFound, OutOfMemory
from palimpsest.llm.base import LLM, SupportsEntropy
from palimpsest.llm.loading import find_device, find_dtype, memory_errors
from palimpsest.llm.local import LocalLLM


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_a_folder_becomes_a_model_that_fulfils_the_protocol(tiny_folder: Path) -> None:
    llm = LocalLLM.load(tiny_folder)
    assert isinstance(llm, LLM) and isinstance(llm, SupportsEntropy)
    assert llm.name == "llama"
    assert llm.context_window == 256
    assert llm.places == {"prompt", "cache", "weights", "logits"}
    assert llm.capabilities == {"logprobs", "hidden_states"}
    assert not llm.model.training


def test_loading_prints_nothing(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    LocalLLM.load(tiny_folder)
    assert capfd.readouterr() == ("", "")


def test_garbage_is_collected_again_after_a_load_that_worked_or_failed(
    tiny_folder: Path, tmp_path: Path
) -> None:
    LocalLLM.load(tiny_folder)
    assert gc.isenabled()
    with pytest.raises(ModelNotFound):
        LocalLLM.load(tmp_path)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)],
)
def test_dtype_is_the_one_asked_for(
    tiny_folder: Path, dtype: str | torch.dtype, expected: torch.dtype
) -> None:
    assert LocalLLM.load(tiny_folder, device="cpu", dtype=dtype).model.dtype == expected


def test_auto_dtype_on_cuda_is_bfloat16() -> None:
    assert find_dtype("auto", torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("dtype", ["int8", "float99", torch.int64])
def test_a_dtype_that_is_none_is_refused(dtype: str | torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"dtype=.* must be auto, float32"):
        find_dtype(dtype, torch.device("cpu"))


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no device"):
        find_device("warp")
    with pytest.raises(ConfigError, match=r"sees \d+ CUDA devices"):
        find_device(f"cuda:{torch.cuda.device_count()}")


def test_device_and_device_map_together_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="give one"):
        LocalLLM.load(tiny_folder, device="cpu", device_map="auto")


def test_a_device_map_places_the_model(tiny_folder: Path) -> None:
    assert LocalLLM.load(tiny_folder, device_map={"": "cpu"}).device.type == "cpu"


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"does not exist.*palimpsest models pull"):
        LocalLLM.load(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match=r"has no config.json"):
        LocalLLM.load(tmp_path)


def _truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _drop_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _spoil(name: str, text: str = "{") -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(text)

    return spoil


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate_weights, "cannot be read .* fetch it again"),
        (_pickle_weights, "no \\*.safetensors, the only format"),
        (_drop_a_tensor, "lack 1 tensors, 'model.layers.1.mlp.up_proj.weight'"),
        (_spoil("config.json"), "cannot be read"),
        (_spoil("tokenizer.json"), "cannot be read"),
        (_spoil("tokenizer.json", "{}"), "cannot be read"),
        (_spoil("tokenizer_config.json"), "cannot be read"),
    ],
)
def test_a_damaged_folder_is_an_error_with_a_remedy(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=message):
        LocalLLM.load(copy)


def test_an_unknown_architecture_is_an_error(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(ModelError, match="abacus"):
        LocalLLM.load(copy)


def test_code_in_a_model_folder_is_not_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    with pytest.raises(ModelError):
        LocalLLM.load(copy)
    assert not (copy / "ran").exists()


def test_a_failed_allocation_says_for_what_and_what_to_do() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"no memory for 7 tokens on cpu.*shorter prompt"),
        memory_errors("7 tokens", torch.device("cpu")),
    ):
        torch.empty(2**60)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), NotImplementedError("no kernel")])
def test_other_errors_of_torch_pass_unchanged(error: RuntimeError) -> None:
    with (
        pytest.raises(RuntimeError, match=str(error)),
        memory_errors("7 tokens", torch.device("cpu")),
    ):
        raise error


def test_memory_that_cuda_lacks_is_reported_as_such() -> None:
    with (
        pytest.raises(OutOfMemory, match="CUDA out of memory"),
        memory_errors("the weights", torch.device("cpu")),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")
