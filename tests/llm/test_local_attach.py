"""Memory entering the model, and leaving no trace afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import pytest
import torch
from langchain_core.messages import HumanMessage
from palimpsest.errors import ConfigError, ConflictError, OutOfMemory
from palimpsest.llm.base import GenerationConfig
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.places import Cache, Contribution, Delta, Logits, Prompt, Weights
from palimpsest.llm.prompting import PromptEncoder
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

ASK = [HumanMessage("Say something.")]
SHORT = GenerationConfig(max_tokens=4)
LAYER = "model.layers.1.mlp.down_proj"


def _patch(delta: Delta | None, layer: str = LAYER, memory: str = "wise") -> Weights:
    deltas: Mapping[str, Delta] = {layer: delta} if delta else {}
    return Weights(memory=memory, layers=frozenset({layer}), open=lambda prompt: deltas)


def _replies(llm: LocalLLM, *contributions: Contribution) -> list[tuple[int | None, float | None]]:
    return [(t.id, t.logprob) for t in llm.stream(ASK, contributions, SHORT)]


def _clean(llm: LocalLLM) -> bool:
    return not any(module._forward_hooks for module in llm.model.modules())


def test_a_closed_gate_leaves_the_model_bit_identical(tiny_llm: LocalLLM) -> None:
    assert _replies(tiny_llm, _patch(None)) == _replies(tiny_llm)


def test_a_patch_changes_the_reply_while_it_is_attached_only(tiny_llm: LocalLLM) -> None:
    base = _replies(tiny_llm)
    weights = {name: tensor.clone() for name, tensor in tiny_llm.model.state_dict().items()}
    assert _replies(tiny_llm, _patch(lambda x, y: y + x.mean() + 3)) != base
    assert _replies(tiny_llm) == base
    assert _clean(tiny_llm)
    for name, tensor in tiny_llm.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_delta_sees_input_and_output_and_the_gate_sees_the_prompt_once(
    tiny_llm: LocalLLM,
) -> None:
    opened, seen = [], []

    def delta(inputs: Tensor, output: Tensor) -> Tensor:
        seen.append((tuple(inputs.shape), tuple(output.shape)))
        return output

    def open(prompt: Tensor) -> Mapping[str, Delta]:
        opened.append(prompt)
        return {LAYER: delta}

    list(tiny_llm.stream(ASK, [Weights(memory="w", layers=frozenset({LAYER}), open=open)], SHORT))
    prompt = PromptEncoder(tiny_llm.tokenizer).prompt(ASK)
    assert [ids.tolist() for ids in opened] == [[prompt]]
    length = len(prompt)
    assert seen[0] == ((1, length, 128), (1, length, 64))
    assert seen[1:] == [((1, 1, 128), (1, 1, 64))] * 3


def test_a_low_rank_delta_equals_the_weights_it_stands_for(tiny_llm: LocalLLM) -> None:
    torch.manual_seed(0)
    update = torch.randn(64, 1) @ torch.randn(1, 128)
    attached = _replies(tiny_llm, _patch(lambda x, y: y + x @ update.T))
    linear = tiny_llm.model.get_submodule(LAYER)
    assert isinstance(linear, torch.nn.Linear)
    with torch.no_grad():
        linear.weight += update
    for (id, logprob), (merged_id, merged_logprob) in zip(
        attached, _replies(tiny_llm), strict=True
    ):
        assert id == merged_id
        assert logprob == pytest.approx(merged_logprob, abs=1e-3)


def test_logit_changes_apply_in_the_order_given(tiny_llm: LocalLLM) -> None:
    def only(id: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda ids, logits: torch.full_like(logits, -50.0).index_fill(
            1, torch.tensor([id]), 0.0
        )

    seen: list[list[int]] = []

    def note(ids: Tensor, logits: Tensor) -> Tensor:
        seen.append(ids[0].tolist())
        return logits

    steps = [Logits(memory=str(id), process=only(id)) for id in (40, 41)]
    replies = _replies(tiny_llm, *steps, Logits(memory="note", process=note))
    assert [id for id, _ in replies] == [41] * 4
    prompt = PromptEncoder(tiny_llm.tokenizer).prompt(ASK)
    assert seen == [prompt + [41] * n for n in range(4)]


def test_a_cache_contribution_owns_the_keys_and_values(tiny_llm: LocalLLM) -> None:
    built: list[DynamicCache] = []

    def build(model: PreTrainedModel) -> DynamicCache:
        built.append(DynamicCache(config=model.config))
        return built[-1]

    assert _replies(tiny_llm, Cache(memory="sinks", build=build)) == _replies(tiny_llm)
    (cache,) = built
    # The last token is chosen and never read.
    assert cache.get_seq_length() == tiny_llm.count_prompt_tokens(ASK) + 3


def _fails(*_: Tensor) -> Tensor:
    raise ZeroDivisionError("in a memory")


def _fails_to_open(prompt: Tensor) -> Mapping[str, Delta]:
    raise ZeroDivisionError("in a gate")


def _fails_to_build(model: PreTrainedModel) -> DynamicCache:
    raise ZeroDivisionError("in a cache")


@pytest.mark.parametrize(
    "broken",
    [
        _patch(_fails, layer="model.layers.0.mlp.up_proj", memory="broken"),
        Weights(memory="gate", layers=frozenset({"lm_head"}), open=_fails_to_open),
        Logits(memory="logits", process=_fails),
        Cache(memory="cache", build=_fails_to_build),
    ],
    ids=lambda contribution: contribution.memory,
)
def test_an_error_in_a_memory_surfaces_and_everything_is_undone(
    tiny_llm: LocalLLM, broken: Contribution
) -> None:
    base = _replies(tiny_llm)
    with pytest.raises(ZeroDivisionError):
        _replies(tiny_llm, _patch(lambda x, y: y + 1), broken)
    assert _clean(tiny_llm)
    assert _replies(tiny_llm) == base


def test_an_error_late_in_a_reply_is_undone_as_well(tiny_llm: LocalLLM) -> None:
    base, calls = _replies(tiny_llm), iter(range(2))

    def delta(inputs: Tensor, output: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise ZeroDivisionError
        return output + 1

    stream = iter(tiny_llm.stream(ASK, [_patch(delta)], SHORT))
    next(stream), next(stream)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert _clean(tiny_llm)
    assert _replies(tiny_llm) == base


@pytest.mark.parametrize("end", ["closed", "dropped", "cancelled", "exhausted"])
def test_however_a_reply_ends_nothing_stays_attached(tiny_llm: LocalLLM, end: str) -> None:
    base, cancel = _replies(tiny_llm), threading.Event()
    stream = tiny_llm.stream(ASK, [_patch(lambda x, y: y + 1)], SHORT, cancel=cancel)
    next(iter(stream))
    assert not _clean(tiny_llm)
    if end == "closed":
        stream.close()  # type: ignore[attr-defined]  # a generator, as every stream here
    elif end == "dropped":
        del stream
    else:
        if end == "cancelled":
            cancel.set()
        list(stream)
    assert _clean(tiny_llm)
    assert _replies(tiny_llm) == base


def test_an_allocation_that_fails_in_a_memory_is_out_of_memory(tiny_llm: LocalLLM) -> None:
    def delta(inputs: Tensor, output: Tensor) -> Tensor:
        return output + torch.empty(2**60)

    with pytest.raises(OutOfMemory):
        _replies(tiny_llm, _patch(delta))
    assert _clean(tiny_llm)


def test_an_unknown_layer_is_named_with_those_near_it(tiny_llm: LocalLLM) -> None:
    with pytest.raises(ConfigError, match=r"'wise' patches layer 'model.layers.1.mlp.down'.*") as e:
        _replies(tiny_llm, _patch(None, layer="model.layers.1.mlp.down"))
    assert LAYER in str(e.value)


def test_a_patch_on_an_undeclared_layer_is_refused(tiny_llm: LocalLLM) -> None:
    patch = Weights(memory="w", layers=frozenset({LAYER}), open=lambda prompt: {"lm_head": _fails})
    with pytest.raises(ConfigError, match=r"'w' opened a patch on \['lm_head'\]"):
        _replies(tiny_llm, patch)
    assert _clean(tiny_llm)


def test_two_patches_on_one_layer_are_a_conflict(tiny_llm: LocalLLM) -> None:
    with pytest.raises(ConflictError, match=r"'a' and 'b' both patch layer"):
        _replies(tiny_llm, _patch(None, memory="a"), _patch(None, memory="b"))


def test_patches_that_add_go_with_one_that_replaces_and_come_after_it(tiny_llm: LocalLLM) -> None:
    came: list[str] = []

    def noting(name: str) -> Delta:
        def delta(inputs: Tensor, output: Tensor) -> Tensor:
            came.append(name)
            return output

        return delta

    def given(name: str, *, adds: bool) -> Weights:
        deltas = {LAYER: noting(name)}
        return Weights(
            memory=name, layers=frozenset({LAYER}), adds=adds, open=lambda prompt: deltas
        )

    added = [given(name, adds=True) for name in ("adds", "adds, too")]
    _replies(tiny_llm, *added, given("replaces", adds=False))
    assert came[:3] == ["replaces", "adds", "adds, too"]


def test_a_prompt_contribution_is_the_agents_to_place(tiny_llm: LocalLLM) -> None:
    with pytest.raises(ConfigError, match=r"'scm' enters at the prompt, and the agent places"):
        _replies(tiny_llm, Prompt(memory="scm"))
