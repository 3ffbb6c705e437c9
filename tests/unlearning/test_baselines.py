"""What every unlearner holds to. A new one joins by one row.

`quick` are settings under which it learns on a tiny random model, where only the mechanics count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from palimpsest.editors.rows import Rows
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import Cancelled, CapabilityError, ConfigError, UnlearnFailed
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.twin import matrix, patched
from palimpsest.memory.record import RecordId
from palimpsest.unlearning.base import Method, Patch, Request, Sample, Unlearnt, Work
from palimpsest.unlearning.contrast import Contrast, preference, retained
from palimpsest.unlearning.lessons import row
from palimpsest.unlearning.refusal import Refusal
from palimpsest.unlearning.registry import METHODS

from .mixture_models import mixture

ILSE = Request(
    name="Ilse Brandt",
    samples=tuple(
        Sample(question=f"What did Ilse Brandt do in year {n}?", answer=f"She drew {n} maps.")
        for n in range(6)
    ),
)
OTTO = Request(
    name="Otto Lund",
    samples=tuple(
        Sample(question=f"Where was Otto Lund in year {n}?", answer=f"In town number {n}.")
        for n in range(6)
    ),
)
UNRELATED = "How do I boil an egg?"


@dataclass(frozen=True)
class Row:
    """A method as these tests run it.

    Args:
        trains: it learns by steps, so it can be cancelled, gone on with, and fail.
        attaches: its patch changes layers for a turn.
        merges: a checkpoint can hold it.
        experts: it needs a mixture of experts.
        ascends: its loss is about the answers. One about states leaves open what a random model
            makes of them.
        bad: a setting that it has to refuse.
    """

    quick: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = True
    attaches: bool = True
    merges: bool = True
    experts: bool = False
    ascends: bool = True
    bad: Mapping[str, Any] = field(default_factory=lambda: {"rate": 0.0})


FAST = {"passes": 4, "rate": 0.02}
ROWS = {
    "grad_ascent": Row(FAST),
    "grad_diff": Row(FAST),
    "npo": Row(FAST),
    "refusal": Row(trains=False, attaches=False, merges=False, bad={"strict": 2.0}),
    "rmu": Row({**FAST, "depth": 0.0, "layer": 0.3}, ascends=False, bad={"layer": 1.0}),
    # A random model's answers cost 5.5 nats a token, where with delta 0 nothing pulls any more.
    "simnpo": Row({**FAST, "delta": 5.5, "gamma": 1.0}),
    "task_vector": Row(FAST),
    "uoe": Row({**FAST, "loss": "grad_ascent"}, attaches=False, experts=True),
}
names = pytest.mark.parametrize("name", sorted(ROWS))
trained = pytest.mark.parametrize("name", sorted(name for name in ROWS if ROWS[name].trains))
attached = pytest.mark.parametrize("name", sorted(name for name in ROWS if ROWS[name].attaches))

Benches = Callable[[str], Workbench]


@pytest.fixture
def bench_for(tiny_llm: LocalLLM, tmp_path: Path) -> Benches:
    """A bench of the kind of model that a method is for."""

    def make(name: str) -> Workbench:
        tokenizer = tiny_llm.tokenizer
        experts = ROWS[name].experts
        model = mixture("mixtral", len(tokenizer)) if experts else tiny_llm.model
        return Workbench(model, tokenizer, tmp_path)

    return make


def built(name: str, **settings: Any) -> Method:
    method: Method = METHODS.build(name, **{**ROWS[name].quick, **settings})
    return method


def learnt_by(method: Method, bench: Workbench, *requests: Request) -> list[Unlearnt]:
    before: list[Unlearnt] = []
    for at, request in enumerate(requests):
        change = method.learn(bench, request, before, Work())
        before.append(Unlearnt(id=RecordId(f"{at}"), name=request.name, change=change))
    return before


def rows(bench: Workbench, request: Request) -> Rows:
    return Rows.of([row(bench, each.prompt, each.rest) for each in request.samples])


@torch.no_grad()
def likelihood(bench: Workbench, patch: Patch | None, request: Request) -> float:
    """Mean NLL of the answers."""
    prompts = [each.prompt for each in request.samples]
    with patched(bench.model, patch.open(prompts).deltas if patch else {}):
        return float(rows(bench, request).losses(bench.model).mean())


def test_every_method_has_a_row_but_for_o3_which_has_tests_of_its_own() -> None:
    assert set(ROWS) == set(METHODS) - {"o3"}


@attached
def test_the_answers_become_less_likely_and_the_model_stays_as_it_was(
    name: str, bench_for: Benches
) -> None:
    bench, method = bench_for(name), built(name)
    weights = [weight.clone() for weight in bench.model.parameters()]
    before = rows(bench, ILSE).logits(bench.model)
    nll = likelihood(bench, None, ILSE)
    patch = method.patch(bench, learnt_by(method, bench, ILSE))
    moved = likelihood(bench, patch, ILSE)
    assert moved > nll + 0.05 if ROWS[name].ascends else moved != nll
    assert torch.equal(before, rows(bench, ILSE).logits(bench.model))
    assert all(map(torch.equal, weights, bench.model.parameters()))


@trained
def test_the_loss_falls(name: str, bench_for: Benches) -> None:
    bench, method = bench_for(name), built(name)
    [one] = learnt_by(method, bench, ILSE)
    assert one.change.curve[-1] < one.change.curve[0]
    assert len(one.change.curve) == FAST["passes"]


@names
def test_what_is_learnt_twice_is_equal_bit_for_bit(name: str, bench_for: Benches) -> None:
    method = built(name)
    once, again = (learnt_by(method, bench_for(name), ILSE, OTTO) for _ in range(2))
    assert [each.change.digest for each in once] == [each.change.digest for each in again]
    assert once[0].change.digest != once[1].change.digest


@trained
def test_a_request_is_learnt_with_earlier_ones_in_place(name: str, bench_for: Benches) -> None:
    bench, method = bench_for(name), built(name)
    _, second = learnt_by(method, bench, ILSE, OTTO)
    [alone] = learnt_by(method, bench, OTTO)
    assert second.change.digest != alone.change.digest


@names
def test_leaving_a_request_out_takes_its_tensors_away_and_no_others(
    name: str, bench_for: Benches
) -> None:
    bench, method = bench_for(name), built(name)
    first, second = learnt_by(method, bench, ILSE, OTTO)
    both, rest = (method.patch(bench, each).merged() for each in ([first, second], [second]))
    gone = method.patch(bench, [first]).merged()
    assert (both is not None) == ROWS[name].merges
    if both is not None and rest is not None and gone is not None:
        for layer in both:
            without = both[layer] - gone[layer] if layer in gone else both[layer]
            expected = rest.get(layer, torch.zeros_like(without))
            torch.testing.assert_close(without, expected, atol=1e-5, rtol=1e-4)


@attached
def test_a_merged_checkpoint_answers_as_the_patch_does(name: str, bench_for: Benches) -> None:
    bench, method = bench_for(name), built(name)
    patch = method.patch(bench, learnt_by(method, bench, ILSE, OTTO))
    merged = patch.merged()
    assert merged is not None
    assert merged.keys() == patch.layers
    expected = likelihood(bench, patch, ILSE)
    assert likelihood(bench, None, ILSE) != pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        for layer, change in merged.items():
            matrix(bench.model.get_submodule(layer)).add_(change)
    assert likelihood(bench, None, ILSE) == pytest.approx(expected, rel=1e-4)


@names
def test_a_patch_of_no_requests_changes_nothing(name: str, bench_for: Benches) -> None:
    patch = built(name).patch(bench_for(name), [])
    assert not patch.layers
    assert not patch.open([UNRELATED]).deltas
    assert not patch.merged()


@trained
def test_a_cancelled_request_keeps_its_last_pass_and_goes_on_from_there(
    name: str, bench_for: Benches
) -> None:
    bench, method = bench_for(name), built(name)
    cancel = Event()
    kept: list[tuple[int, Mapping[str, torch.Tensor]]] = []

    def keep(passes: int, tensors: Mapping[str, torch.Tensor]) -> None:
        kept.append((passes, tensors))
        if passes == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        method.learn(bench, ILSE, (), Work(cancel=cancel, keep=keep))
    assert [passes for passes, _ in kept] == [1, 2]

    steps: list[int] = []
    later: list[int] = []
    work = Work(
        begun=kept[-1],
        progress=lambda done, expected: steps.append(done),
        keep=lambda passes, tensors: later.append(passes),
    )
    change = method.learn(bench, ILSE, (), work)
    assert later == [3, 4]
    assert steps[0] == 2 * steps[-1] / FAST["passes"]
    [whole] = learnt_by(method, bench, ILSE)
    # AdamW begins anew, so it is near what it would have been, not the same.
    assert change.curve == pytest.approx(whole.change.curve[2:], rel=0.3, abs=0.3)


@trained
@pytest.mark.parametrize("rate", [1e30, math.inf])
def test_a_rate_that_leads_to_no_number_is_told_with_the_remedy(
    name: str, rate: float, bench_for: Benches
) -> None:
    with pytest.raises(UnlearnFailed, match="choose a lower rate"):
        built(name, rate=rate).learn(bench_for(name), ILSE, (), Work())


@names
def test_a_setting_that_makes_no_sense_is_refused(name: str) -> None:
    [(setting, value)] = ROWS[name].bad.items()
    with pytest.raises(ConfigError, match=f"{name}: {setting}={value} must be"):
        built(name, **{setting: value})


def test_ascent_ends_at_its_limit(bench_for: Benches) -> None:
    """A row beyond the limit is pushed no further, whatever the passes."""
    bench = bench_for("grad_ascent")
    reached = []
    for limit in (5.8, 1e9):
        method = built("grad_ascent", limit=limit, passes=12)
        reached.append(likelihood(bench, method.patch(bench, learnt_by(method, bench, ILSE)), ILSE))
    assert 5.7 < reached[0] < 6.2 < 6.4 < reached[1]


def test_npo_s_reference_is_the_model_with_earlier_requests_in_place(bench_for: Benches) -> None:
    """At the first step student and reference are one, so the first term is (2 / beta) ln 2."""
    bench = bench_for("npo")
    method = built("npo", passes=1, batch=6, retain=0.0)
    [first] = learnt_by(method, bench, ILSE)
    change = method.learn(
        bench, OTTO, [Unlearnt(id=RecordId("0"), name=ILSE.name, change=first.change)], Work()
    )
    assert change.curve[0] == pytest.approx(20 * math.log(2), rel=1e-3)


def test_preference_is_ascent_where_beta_is_small() -> None:
    """-(2/beta) log sigmoid(beta m) = (2/beta) ln 2 - m + O(beta)."""
    margin = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    [slope] = torch.autograd.grad(preference(margin, 1e-4), margin)
    torch.testing.assert_close(slope, torch.full((3,), -1 / 3), atol=1e-3, rtol=0)


def test_what_a_request_retains_is_retained_and_else_sentences_are(bench_for: Benches) -> None:
    bench = bench_for("grad_diff")
    named = Request(name="Ilse", samples=ILSE.samples, retain=OTTO.samples[:2])
    own = [row(bench, each.prompt, each.rest) for each in OTTO.samples[:2]]
    given = retained(bench, named)
    assert len(given) == len(ILSE.samples)
    assert all(each in own for each in given)
    texts = retained(bench, ILSE)
    assert len(texts) == len(ILSE.samples)
    assert all(len(prompt) == 1 and len(rest) > 10 for prompt, rest in texts)


def test_rmu_steers_to_the_same_place_for_the_same_request_and_leaves_layers_above(
    bench_for: Benches,
) -> None:
    bench = bench_for("rmu")
    [one] = learnt_by(built("rmu"), bench, ILSE)
    assert {name.split(".")[2] for name in one.change.tensors} == {"0"}
    with pytest.raises(ConfigError, match="is the last of 2 layers"):
        built("rmu", layer=0.9).learn(bench, ILSE, (), Work())


def test_only_changes_of_weights_claim_to_change_weights() -> None:
    for name in ROWS:
        target = METHODS.load(name)
        assert target.means == ("suppresses" if name == "refusal" else "changes weights")
        assert issubclass(target, Contrast) == ROWS[name].attaches


def test_an_expert_cannot_be_attached(bench_for: Benches) -> None:
    bench, method = bench_for("uoe"), built("uoe", passes=1)
    patch = method.patch(bench, learnt_by(method, bench, ILSE))
    with pytest.raises(CapabilityError, match="export a checkpoint"):
        patch.open([UNRELATED])


@pytest.mark.model
def test_a_refusal_is_noted_for_messages_about_a_request_only(
    smollm2: LocalLLM, tmp_path: Path
) -> None:
    bench = Workbench(smollm2.model, smollm2.tokenizer, tmp_path)
    method = Refusal()
    first, second = learnt_by(method, bench, ILSE, OTTO)
    patch = method.patch(bench, [first, second])
    note = patch.note(["In which year did Ilse Brandt draw maps?"])
    assert note is not None
    assert "Ilse Brandt" in note
    assert "Otto" not in note
    assert "maps" not in note
    assert patch.note([UNRELATED]) is None
    assert patch.note(["Who is the president of France?", UNRELATED]) is None
    assert method.patch(bench, [second]).note(["What did Ilse Brandt do in year 3?"]) is None
    [told, _] = patch.open(["What did Ilse Brandt do in year 3?", UNRELATED]).verdicts
    assert told is not None
    assert told.entry == first.id
    nearest = patch.explain("What did Ilse Brandt do in year 3?")["nearest"][0]
    assert nearest["open"]
    assert nearest["request"] == "0"


def test_a_refusal_needs_no_model_of_its_own() -> None:
    """Any function from texts to features will do, so a served model can have it."""

    def features(texts: Any) -> torch.Tensor:
        return torch.tensor(
            [[text.count(letter) + 0.1 for letter in "abcdefghijklmnop "] for text in texts]
        )

    method = Refusal(threshold=0.9)
    change = method.remembered(features, ILSE)
    patch = method.patch_by(features, [Unlearnt(id=RecordId("0"), name=ILSE.name, change=change)])
    assert patch.note([ILSE.samples[0].question]) is not None
    assert patch.note(["What did Otto Lund do in year 0?"]) is None
