"""WISE: side memories of their own or shared, routed by row, and cheap to learn."""

import math
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from palimpsest.editors.base import Change, Edit, Learnt
from palimpsest.editors.measuring import Question
from palimpsest.editors.side_memory import SideMemories, mask_of
from palimpsest.editors.wise import Wise
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import Cancelled, ConfigError, EditFailed
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.twin import blocks
from palimpsest.memory.record import RecordId

EDITS = [
    Edit(prompt="The capital of Atlantis is", target="Poseidonis", subject="Atlantis"),
    Edit(prompt="The colour of Thule is", target="violet", subject="Thule"),
    Edit(prompt="The river of Lemuria is", target="Ossa", subject="Lemuria"),
]
QUICK: dict[str, Any] = {"steps": 4, "depth": 1.0, "contexts": 1}


@pytest.fixture
def bench(tiny_llm: LocalLLM, tmp_path: Path) -> Workbench:
    return Workbench(tiny_llm.model, tiny_llm.tokenizer, tmp_path)


def quick(**options: Any) -> Wise:
    """A method that takes no time, with these options."""
    return Wise(**QUICK | options)


def learn(method: Wise, bench: Workbench, edits: list[Edit] = EDITS) -> list[Learnt]:
    """Each edit on top of those before it in its lane."""
    learnt: list[Learnt] = []
    for number, edit in enumerate(edits):
        before = [each for each in learnt if method.lane(each.edit) == method.lane(edit)]
        [change] = method.learn(bench, [edit], before, lambda done, total: None, Event())
        learnt.append(Learnt(id=RecordId(f"edit{number}"), edit=edit, change=change))
    return learnt


def test_each_row_of_a_batch_is_routed_by_itself(bench: Workbench) -> None:
    method = quick()
    patch = method.patch(bench, learn(method, bench))
    prompts = [EDITS[1].prompt, "Nothing of the kind", EDITS[0].prompt]
    opened = patch.open(prompts)
    assert [verdict and verdict.entry for verdict in opened.verdicts] == ["edit1", None, "edit0"]

    together = bench.prober.answers([Question(prompt, "violet") for prompt in prompts], patch)
    for prompt, answer in zip(prompts, together, strict=True):
        [alone] = bench.prober.answers([Question(prompt, "violet")], patch)
        assert answer.logprob == pytest.approx(alone.logprob, abs=1e-3)


def test_a_closed_gate_leaves_the_base_bit_for_bit(bench: Workbench) -> None:
    method = quick()
    patch = method.patch(bench, learn(method, bench))
    assert patch.open(["Nothing of the kind"]).deltas == {}


def test_only_layers_from_the_edited_one_upwards_run_while_an_edit_trains(
    bench: Workbench,
) -> None:
    runs = [0, 0]
    _, layers = blocks(bench.model)
    for index in (0, 1):

        def count(*_: object, index: int = index) -> None:
            runs[index] += 1

        layers[index].register_forward_pre_hook(count)
    bench.features(["so that the background is there"])
    runs[:] = [0, 0]
    learn(quick(until=1e-9), bench, EDITS[:1])
    assert runs[1] - runs[0] == 2 * 4, "two batches, four steps, and the lower layer in none"


def test_which_memory_an_edit_is_in_does_not_depend_on_the_others() -> None:
    method = Wise(shards=2)
    lanes = [method.lane(edit) for edit in EDITS]
    assert lanes == [method.lane(edit) for edit in reversed(EDITS)][::-1]
    assert set(lanes) <= {"0", "1"}
    assert len({Wise().lane(edit) for edit in EDITS}) == 3


def test_a_masked_memory_differs_only_under_its_mask(bench: Workbench) -> None:
    method = quick(rank=0, shards=1, rate=0.01)
    learnt = learn(method, bench)
    patch = method.patch(bench, learnt)
    assert isinstance(patch, SideMemories)
    [memory] = patch._memories
    weight = memory.difference.dense()
    free = mask_of(method, EDITS[0], weight.shape)
    assert (weight[free] != 0).float().mean() > 0.9
    assert (weight[~free] == 0).all()
    assert free.float().mean().item() == pytest.approx(method.mask, abs=0.03)


def test_merged_memories_become_one(bench: Workbench) -> None:
    method = quick(rank=0, shards=2, mode="merge", rate=0.01)
    learnt = learn(method, bench)
    patch = method.patch(bench, learnt)
    assert isinstance(patch, SideMemories)
    assert len(patch._memories) == 1
    assert {verdict.entry for verdict in patch.open([e.prompt for e in EDITS]).verdicts if verdict}


def test_the_routing_loss_holds_irrelevant_prompts_still(bench: Workbench) -> None:
    loose = learn(quick(steps=20, until=1e-9), bench, EDITS[:1])
    method = Wise(
        **QUICK | {"steps": 20, "until": 1e-9},
        gate="activation",
        alpha=0.1,
        beta=0.5,
        gamma=0.2,
    )
    held = learn(method, bench, EDITS[:1])

    def ratio(learnt: list[Learnt]) -> float:
        patch = method.patch(bench, learnt)
        assert isinstance(patch, SideMemories)
        inside, outside = patch._gate.score([EDITS[0].prompt, "It was the best of times"])
        return float(outside[0] / inside[0])

    assert ratio(held) < ratio(loose)


def test_a_threshold_set_on_prompt_and_answer_is_another(bench: Workbench) -> None:
    numbers = [
        learn(quick(epsilon=epsilon), bench, EDITS[:1])[0].change.numbers["activation"]
        for epsilon in ("prompt", "answer")
    ]
    assert numbers[0] != numbers[1]
    assert all(map(math.isfinite, numbers))


def test_the_same_edit_is_learnt_the_same_way(bench: Workbench) -> None:
    method = quick()
    one, other = (learn(method, bench, EDITS[:1])[0].change for _ in range(2))
    assert one.digest == other.digest


def test_a_loss_that_is_no_number_fails_with_its_step_and_rate(bench: Workbench) -> None:
    method = quick(beta=1.0, gamma=math.inf)
    with pytest.raises(EditFailed, match=r"became inf at step 1 with rate=0\.08"):
        learn(method, bench, EDITS[:1])


def test_a_cancelled_edit_leaves_the_bench_as_it_was(bench: Workbench) -> None:
    [before] = bench.prober.answers([Question(EDITS[0].prompt, "Poseidonis")])
    cancel = Event()

    def stop(done: int, total: int) -> None:
        if done:
            cancel.set()

    with pytest.raises(Cancelled):
        quick().learn(bench, EDITS[:1], [], stop, cancel)
    [after] = bench.prober.answers([Question(EDITS[0].prompt, "Poseidonis")])
    assert before == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "rank=-1 must be at least 0"),
        ({"mode": "merge"}, "shards=0 must be above 0 with mode=merge"),
        ({"gate": "activation"}, "beta=0.0 must be above 0 with gate=activation"),
        ({"merge": "mean"}, "merge='mean' must be one of"),
    ],
)
def test_an_option_that_breaks_a_rule_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wise(**options)


def test_a_change_is_equal_only_bit_for_bit() -> None:
    change = Change(tensors={"up": torch.tensor([1.0, 2.0])}, numbers={"activation": 1.0})
    other = Change(tensors={"up": torch.tensor([1.0, 2.0000002])}, numbers={"activation": 1.0})
    assert change.digest != other.digest
    assert change.digest == Change(tensors=change.tensors, numbers=change.numbers).digest
