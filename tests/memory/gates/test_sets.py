"""The gate of sets: what opens, by how much, and what it says of a set it cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.twin import twin
from palimpsest.memory.gates.base import Entry
from palimpsest.memory.gates.features import PromptFeatures
from palimpsest.memory.gates.layers import LayerFeatures, spread_over
from palimpsest.memory.gates.scorers.fused import Fused
from palimpsest.memory.gates.sets import SetGate, SetState, calibrated
from palimpsest.memory.gates.soft import mixture, soft
from palimpsest.memory.record import RecordId
from torch import Tensor

L, D = 2, 32


class Topics:
    """Features of texts such as "salt 7": around a point for each topic."""

    background = torch.randn(150, L, D, generator=torch.Generator().manual_seed(0))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            topic, _, number = text.partition(" ")
            draw = torch.Generator().manual_seed(sum(map(ord, text)))
            centre = torch.randn(
                L, D, generator=torch.Generator().manual_seed(sum(map(ord, topic)))
            )
            spread = 0.3 if number else 0.0
            rows.append(3 * centre + spread * torch.randn(L, D, generator=draw))
        return torch.stack(rows)


def about(topic: str, numbers: range) -> tuple[str, ...]:
    return tuple(f"{topic} {number}" for number in numbers)


def entry(topic: str, count: int = 40, **rest: object) -> Entry:
    made = Entry(id=RecordId(topic), inside=about(topic, range(count)))
    return Entry(id=made.id, inside=made.inside, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_more_of_the_same_opens_and_what_is_not_stays_exactly_closed(count: int) -> None:
    gate = SetGate(Topics())
    gate.fit([entry("salt", count)])
    assert float(gate.weights(about("salt", range(count))).min()) > 0.5
    assert float((gate.weights(about("salt", range(100, 140))) > 0).float().mean()) >= 0.9
    assert torch.equal(gate.weights(about("amber", range(40))), torch.zeros(40, 1))


def test_an_entry_needs_its_state_alone_and_knows_nothing_of_the_others() -> None:
    features, asked = Topics(), about("salt", range(50, 60))
    gate = SetGate(features)
    gate.fit([entry("amber"), entry("salt")])
    whole = gate.weights(asked)[:, 1]
    kept = SetState(dict(gate.states[1].learnt), dict(gate.states[1].numbers))
    alone = SetGate(features)
    alone.fit([Entry(id=RecordId("salt"), inside=())], [kept])
    assert torch.equal(alone.weights(asked)[:, 0], whole)
    assert all(isinstance(value, float) for value in kept.numbers.values())


def test_a_sentence_among_others_is_enough() -> None:
    gate = SetGate(Topics())
    gate.fit([entry("salt")])
    assert float(gate.weights(["basalt 3. salt 7. willow 2."])) > 0.5


def test_a_subject_that_is_not_named_closes_the_gate() -> None:
    gate = SetGate(Topics())
    gate.fit([entry("salt", subject="salt"), entry("salt", subject="amber")])
    assert gate.weights(["salt 7"])[0].tolist()[1] == 0.0
    assert [verdict.vetoed for verdict in gate.explain("salt 7")] == [False, True]


def test_why_names_entries_by_margin() -> None:
    gate = SetGate(Topics())
    gate.fit([entry("amber"), entry("salt")])
    first, second = gate.explain("salt 7")
    assert (first.entry, first.open, second.open) == ("salt", True, False)
    assert first.margin > 0 > second.margin
    assert gate.explain("salt 7", k=1) == [first]
    gate.fit([])
    assert gate.explain("salt 7") == []
    assert gate.weights(["salt 7"]).shape == (1, 0)


def test_a_set_that_equals_the_background_says_so() -> None:
    class Same(Topics):
        def __call__(self, texts: Sequence[str]) -> Tensor:
            draw = torch.Generator().manual_seed(sum(map(len, texts)))
            return torch.randn(len(texts), L, D, generator=draw)

    told, same = SetGate(Topics()), SetGate(Same())
    assert told.learn(entry("salt")).numbers["separation"] > 0.99
    numbers = same.learn(entry("salt")).numbers
    assert 0.3 < numbers["separation"] < 0.75
    assert numbers["general_open"] <= 0.02


def test_prompts_named_as_outside_stay_closed_and_their_separation_is_told() -> None:
    gate = SetGate(Topics())
    near = about("salt", range(200, 240))
    state = gate.learn(entry("salt", outside=near))
    assert state.numbers["outside_separation"] < 0.75
    assert gate.overlap(state, near) <= 0.1
    assert gate.overlap(gate.learn(entry("salt")), near) >= 0.9


def test_entries_that_share_prompts_overlap_and_others_do_not() -> None:
    gate = SetGate(Topics())
    state = gate.learn(entry("salt"))
    assert gate.overlap(state, about("salt", range(20, 60))) >= 0.9
    assert gate.overlap(state, about("amber", range(40))) == 0.0
    half = gate.overlap(state, about("salt", range(10)) + about("amber", range(10)))
    assert half == pytest.approx(0.5)


def test_a_few_odd_prompts_do_not_open_the_gate_for_all() -> None:
    own = torch.cat([torch.full((36,), 10.0) + torch.linspace(-1, 1, 36), torch.zeros(4)])
    numbers = calibrated(own, own.clamp_min(9), torch.linspace(-2, 2, 100), None, 0.05)
    assert numbers["threshold"] > 6


def test_the_weight_is_0_and_1_exactly_outside_its_reach() -> None:
    numbers = {"threshold": 1.0, "temperature": 0.5}
    found = soft(torch.tensor([-torch.inf, -0.5, 1.0, 2.5, torch.inf]), numbers)
    assert found.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_the_mixture_peaks_in_the_middle_and_never_closes() -> None:
    numbers = {"seen_mean": 2.0, "own_mean": 0.0, "own_spread": 1.0}
    low, middle, high = mixture(torch.tensor([-50.0, 1.0, 50.0]), numbers).tolist()
    assert middle == pytest.approx(0.9997, abs=1e-4)
    assert low == high == pytest.approx(0.1192, abs=1e-4)
    gate = SetGate(Topics(), weighting="mixture")
    gate.fit([entry("salt")])
    assert float(gate.weights(["amber 3"])) > 0.1


def test_what_makes_no_sense_is_named() -> None:
    with pytest.raises(ConfigError, match=r"alpha=0\.7"):
        SetGate(Topics(), alpha=0.7)
    with pytest.raises(ConfigError, match="no prompts inside"):
        SetGate(Topics()).learn(Entry(id=RecordId("x"), inside=()))
    with pytest.raises(ConfigError, match="0 states for 1"):
        SetGate(Topics()).fit([entry("salt")], [])


class TestLayers:
    def test_default_layers_go_from_a_third_to_the_end(self) -> None:
        assert spread_over(30) == (10, 14, 18, 21, 25, 29)
        assert spread_over(2) == (0, 1)
        assert spread_over(1) == (0,)

    def test_padding_and_order_do_not_matter(self, smollm2: LocalLLM) -> None:
        features = LayerFeatures(twin(smollm2.model), smollm2.tokenizer)
        short, long = "Who wrote it?", "Tell me at length about the author of the book. " * 4
        together = features.raw([long, short, "a", ""])
        alone = torch.cat([features.raw([text]) for text in (long, short, "a", "")])
        assert together.shape == (4, 6, 576)
        assert torch.allclose(together, alone, rtol=1e-3, atol=1e-3)

    def test_the_background_is_standardised_and_kept(self, tiny_llm: LocalLLM, tmp_path) -> None:  # type: ignore[no-untyped-def]
        kept = tmp_path / "features.safetensors"
        features = LayerFeatures(twin(tiny_llm.model), tiny_llm.tokenizer, kept=kept)
        found = features.background
        assert found.shape == (300, 2, 64)
        assert torch.allclose(found.mean(0), torch.zeros(2, 64), atol=1e-4)
        assert torch.allclose(found.std(0), torch.ones(2, 64), atol=1e-2)
        again = LayerFeatures(twin(tiny_llm.model), tiny_llm.tokenizer, kept=kept)
        asked = ["Who wrote it?"]
        assert kept.exists() and torch.equal(again(asked), features(asked))
        assert torch.equal(features.with_model(twin(tiny_llm.model))(asked), features(asked))
        other = LayerFeatures(twin(tiny_llm.model), tiny_llm.tokenizer, (1,), kept=kept)
        assert other.background.shape == (300, 1, 64)

    def test_layers_that_are_not_there_are_named(self, tiny_llm: LocalLLM) -> None:
        for layers in ((2,), (), (1, 0)):
            with pytest.raises(ConfigError, match="layers="):
                LayerFeatures(twin(tiny_llm.model), tiny_llm.tokenizer, layers)

    def test_a_layer_is_pooled_alike_alone_and_among_others(self, tiny_llm: LocalLLM) -> None:
        one = PromptFeatures(twin(tiny_llm.model), tiny_llm.tokenizer, layer=1)
        many = LayerFeatures(twin(tiny_llm.model), tiny_llm.tokenizer, (0, 1))
        assert torch.equal(one._pool(["Who is it?"])[0], many.raw(["Who is it?"])[0, 1])


def test_the_default_scorer_is_the_fused_one() -> None:
    assert SetGate(Topics()).scorer == Fused()
