"""Unlearning one expert: who is engaged, what is changed, and what the anchor does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from palimpsest.editors.checkpoint import write_checkpoint
from palimpsest.editors.rows import Rows
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import CapabilityError, ConfigError
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.twin import twin
from palimpsest.memory.record import RecordId
from palimpsest.unlearning.base import Request, Sample, Unlearnt, Work
from palimpsest.unlearning.lessons import row
from palimpsest.unlearning.mixtures import attribution, mixtures
from palimpsest.unlearning.uoe import ExpertPatch, Uoe, differences
from transformers import AutoModelForCausalLM, PreTrainedModel

from .mixture_models import FAMILIES, mixture

REQUEST = Request(
    name="Ilse",
    samples=tuple(
        Sample(question=f"What does Ilse do on day {day}?", answer=f"She sells {day} maps.")
        for day in range(6)
    ),
)
families = pytest.mark.parametrize("family", FAMILIES)


def bench_of(family: str, llm: LocalLLM, folder: Path) -> Workbench:
    return Workbench(mixture(family, len(llm.tokenizer)), llm.tokenizer, folder)


def rows(bench: Workbench) -> list[tuple[list[int], list[int]]]:
    found = (row(bench, each.prompt, each.rest) for each in REQUEST.samples)
    return [(list(prompt), list(answer)) for prompt, answer in found]


def learnt(method: Uoe, bench: Workbench) -> Unlearnt:
    change = method.learn(bench, REQUEST, (), Work())
    return Unlearnt(id=RecordId("1"), name=REQUEST.name, change=change)


def merged(bench: Workbench, one: Unlearnt) -> PreTrainedModel:
    model = twin(bench.model)
    with torch.no_grad():
        for name, difference in differences(model, [one.change]).items():
            parameter = model.get_parameter(name)
            module, _, part = name.rpartition(".")
            moved = torch.nn.Parameter(parameter + difference, requires_grad=False)
            setattr(model.get_submodule(module), part, moved)
    return model


def chosen(bench: Workbench, model: PreTrainedModel, one: Unlearnt) -> float:
    """Mean probability of the expert that was unlearnt, at its layer."""
    numbers = one.change.numbers
    [at] = [n for n, m in enumerate(mixtures(model)) if m.layer == numbers["layer"]]
    return float(attribution(model, rows(bench))[at, int(numbers["expert"])])


@families
def test_the_probabilities_of_a_layer_s_experts_sum_to_one(
    family: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    bench = bench_of(family, tiny_llm, tmp_path)
    found = attribution(bench.model, rows(bench))
    layers = [each.layer for each in mixtures(bench.model)]
    assert layers == ([1, 2] if family == "qwen2_moe" else [0, 1, 2])
    assert found.shape == (len(layers), 4)
    torch.testing.assert_close(found.sum(1), torch.ones(len(layers)))
    assert found.std() > 0.01


@families
def test_attribution_is_what_the_router_itself_says(
    family: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    bench = bench_of(family, tiny_llm, tmp_path)
    [(prompt, answer), *_] = rows(bench)
    with torch.no_grad():
        told = bench.model(torch.tensor([[*prompt, *answer]]), output_router_logits=True)
    expected = torch.stack([each.softmax(-1).mean(0) for each in told.router_logits])
    torch.testing.assert_close(attribution(bench.model, [(prompt, answer)]), expected)


@families
@pytest.mark.parametrize("router", ["frozen", "trained"])
def test_only_the_most_engaged_expert_and_its_router_differ(
    family: str, router: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    bench = bench_of(family, tiny_llm, tmp_path)
    before = {name: each.clone() for name, each in bench.model.named_parameters()}
    engaged = attribution(bench.model, rows(bench))
    at, index = divmod(int(engaged.argmax()), engaged.shape[1])
    target = mixtures(bench.model)[at]
    one = learnt(Uoe(router=router, passes=1, rate=1e-2), bench)  # type: ignore[arg-type]

    assert (one.change.numbers["layer"], one.change.numbers["expert"]) == (target.layer, index)
    after = dict(merged(bench, one).named_parameters())
    moved = {name for name, each in before.items() if not torch.equal(each, after[name])}
    own = set(target.stacks(bench.model))
    assert moved == own | (set(target.routing(bench.model)) if router == "trained" else set())
    for name in own:
        others = [at for at in range(4) if at != index]
        assert torch.equal(before[name][others], after[name][others])
    assert all(torch.equal(each, before[name]) for name, each in bench.model.named_parameters())


@pytest.mark.parametrize("loss", ["grad_ascent", "grad_diff", "npo", "simnpo"])
def test_every_loss_makes_the_answers_less_likely(
    loss: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    bench = bench_of("mixtral", tiny_llm, tmp_path)
    method = Uoe(loss=loss, passes=4, rate=1e-2)  # type: ignore[arg-type]
    one = learnt(method, bench)
    batch = Rows.of(rows(bench))
    with torch.no_grad():
        before, after = (
            float(batch.losses(model).mean()) for model in (bench.model, merged(bench, one))
        )
    assert after > before


def test_the_anchor_keeps_the_router_at_the_expert_and_without_it_the_router_drifts(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    bench = bench_of("mixtral", tiny_llm, tmp_path)
    free, anchored, frozen = (
        learnt(Uoe(loss="grad_ascent", anchor=anchor, router=router, passes=6, rate=1e-2), bench)  # type: ignore[arg-type]
        for anchor, router in ((0.0, "trained"), (20.0, "trained"), (0.0, "frozen"))
    )
    first = free.change.numbers["engaged"]
    assert chosen(bench, merged(bench, frozen), frozen) == pytest.approx(first, abs=1e-6)
    assert chosen(bench, merged(bench, free), free) < first - 0.02
    assert chosen(bench, merged(bench, anchored), anchored) >= first


def test_a_checkpoint_holds_it_and_a_turn_cannot(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    bench = bench_of("mixtral", tiny_llm, tmp_path)
    one = learnt(Uoe(passes=1, rate=1e-2), bench)
    patch = Uoe().patch(bench, [one])
    with pytest.raises(CapabilityError, match="export a checkpoint"):
        patch.open(["Who is Ilse?"])
    assert not ExpertPatch(bench.model, []).open(["Who is Ilse?"]).deltas

    folder = write_checkpoint(bench.model, bench.tokenizer, patch.merged() or {}, tmp_path / "new")
    opened = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([rows(bench)[0][0]])
    with torch.no_grad():
        expected, found, base = (
            model(ids).logits for model in (merged(bench, one), opened, bench.model)
        )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, base, atol=1e-4)


def test_a_model_without_experts_is_refused_with_the_remedy(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    bench = Workbench(tiny_llm.model, tiny_llm.tokenizer, tmp_path)
    with pytest.raises(CapabilityError, match="use another unlearner"):
        Uoe().learn(bench, REQUEST, (), Work())


def test_a_setting_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="uoe: loss='rmu' must be one of"):
        Uoe(loss="rmu")  # type: ignore[arg-type]
