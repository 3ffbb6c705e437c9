"""Scorers: each tells a set from what is not in it, learns alike each time, and keeps no text."""

from __future__ import annotations

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.memory.gates.scorers.base import nested, part_of
from palimpsest.memory.gates.scorers.clusters import centres
from palimpsest.memory.gates.scorers.drift import Adapting, Moments
from palimpsest.memory.gates.scorers.folds import cross_fitted
from palimpsest.memory.gates.scorers.fused import Fused
from palimpsest.memory.gates.scorers.gaussian import distance, learn, ledoit_wolf
from palimpsest.memory.gates.scorers.registry import SCORERS
from palimpsest.memory.gates.sets import above
from torch import Tensor

L, D = 2, 24
SHAPED = list(SCORERS)


def normal(count: int, seed: int, shift: float = 0.0) -> Tensor:
    """[N, L, D], around a point that lies `shift` along the first three dimensions."""
    points = torch.randn(count, L, D, generator=torch.Generator().manual_seed(seed))
    points[..., :3] += shift
    return points


BACKGROUND = normal(120, 0)
INSIDE = normal(60, 1, shift=4.0)
HELD = normal(40, 2, shift=4.0)


def test_the_registry_has_these_rows() -> None:
    assert SHAPED == ["energy", "fused", "knn", "mahalanobis", "o3", "palm"]


@pytest.mark.parametrize("spec", [*SHAPED, "o3:sign=fixed,shrinkage=0.5"])
def test_what_belongs_to_a_set_scores_above_what_does_not(spec: str) -> None:
    scorer = SCORERS.build(spec)
    state = scorer.fit(INSIDE, BACKGROUND)
    inside, outside = scorer.score(state, HELD), scorer.score(state, normal(80, 3))
    assert inside.shape == (40,)
    if spec == "o3":
        return  # as coded its orientation depends on the data
    assert above(inside, outside) > 0.95
    assert above(-inside, -outside) < 0.05


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_a_few_prompts_are_enough_to_learn_from(name: str, count: int) -> None:
    scorer = SCORERS.build(name)
    state = scorer.fit(INSIDE[:count], BACKGROUND)
    assert scorer.score(state, HELD).isfinite().all()


@pytest.mark.parametrize("name", SHAPED)
def test_equal_features_give_equal_states_whatever_was_drawn_before(name: str) -> None:
    scorer = SCORERS.build(name)
    first = scorer.fit(INSIDE, BACKGROUND)
    torch.rand(3)
    again = scorer.fit(INSIDE.clone(), BACKGROUND.clone())
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(part.dtype == torch.float32 and not part.requires_grad for part in first.values())


@pytest.mark.parametrize("name", SHAPED)
def test_each_prompt_scores_the_same_whatever_stands_beside_it(name: str) -> None:
    scorer = SCORERS.build(name)
    state = scorer.fit(INSIDE, BACKGROUND)
    together = scorer.score(state, HELD)
    assert torch.allclose(scorer.score(state, HELD[3:4]), together[3:4], rtol=1e-3, atol=1e-3)


def test_a_distance_by_low_rank_is_the_one_by_the_whole_inverse() -> None:
    points = normal(200, 5)
    centred = points[:, 0] - points[:, 0].mean(0)
    spread = centred.T @ centred / len(points)
    shrunk = 0.7 * spread + 0.3 * spread.trace() / D * torch.eye(D)
    asked = normal(7, 6)
    away = asked[:, 0] - points[:, 0].mean(0)
    whole = torch.einsum("nd,de,ne->n", away, shrunk.inverse(), away)
    found = distance(learn(points, 0.3), asked)[:, 0]
    assert torch.allclose(found, whole, rtol=1e-4)


def test_few_points_in_many_dimensions_have_the_distance_of_the_shrunk_inverse_too() -> None:
    points, asked = normal(10, 5), normal(7, 6)
    centred = points[:, 1] - points[:, 1].mean(0)
    spread = centred.T @ centred / len(points)
    shrunk = 0.5 * spread + 0.5 * spread.trace() / D * torch.eye(D)
    away = asked[:, 1] - points[:, 1].mean(0)
    whole = torch.einsum("nd,de,ne->n", away, shrunk.inverse(), away)
    assert torch.allclose(distance(learn(points, 0.5), asked)[:, 1], whole, rtol=1e-4)


def test_the_pseudo_inverse_sees_nothing_outside_the_points_directions() -> None:
    points = normal(6, 5)
    points[..., 10:] = 0
    asked = torch.zeros(1, L, D)
    asked[..., 20] = 100.0
    seen = distance(learn(points, 0.0), asked)
    asked[..., 20] = 0.0
    assert torch.allclose(seen, distance(learn(points, 0.0), asked))
    assert float(distance(learn(points, 0.5), asked + 100).min()) > float(seen.max())


def test_ledoit_and_wolf_shrink_few_points_more_than_many() -> None:
    from sklearn.covariance import ledoit_wolf_shrinkage

    few, many = normal(10, 7)[:, 0], normal(400, 7)[:, 0]
    for points in (few, many):
        centred = points - points.mean(0)
        theirs = ledoit_wolf_shrinkage(centred.double().numpy(), assume_centered=True)
        assert ledoit_wolf(centred) == pytest.approx(theirs, abs=1e-3)
    assert ledoit_wolf(few[:1] - few[:1]) == 1.0


def test_scores_of_prompts_not_seen_are_below_those_of_prompts_seen() -> None:
    scorer = Fused()
    own = cross_fitted(scorer, INSIDE, BACKGROUND)
    seen = scorer.score(scorer.fit(INSIDE, BACKGROUND), INSIDE)
    assert own.shape == seen.shape
    assert float(own.mean()) < float(seen.mean())
    assert cross_fitted(scorer, INSIDE[:1], BACKGROUND).shape == (0,)


def test_centres_find_groups_and_need_no_seed() -> None:
    groups = torch.eye(3).repeat_interleave(5, 0) + 0.01 * normal(15, 8)[:, 0, :3]
    found, owner = centres(groups, 3)
    assert found.shape == (3, 3)
    assert [len(set(owner[at : at + 5].tolist())) for at in (0, 5, 10)] == [1, 1, 1]
    assert len(set(owner.tolist())) == 3
    assert len(centres(groups[:2], 5)[0]) == 2


def test_parts_of_a_state_go_in_and_come_out() -> None:
    state = {"a": torch.ones(1)}
    assert part_of(nested("x", state) | nested("xy", state), "x") == state


@pytest.mark.parametrize(
    "spec",
    [
        "knn:k=0",
        "mahalanobis:shrinkage=0",
        "o3:sign=both",
        "o3:nu=0",
        "energy:classes=0",
        "palm:keep=1",
    ],
)
def test_an_option_that_makes_no_sense_is_named(spec: str) -> None:
    option = spec.partition(":")[2].partition("=")[0]
    with pytest.raises(ConfigError, match=option):
        SCORERS.build(spec)


class TestAStream:
    kinds = tuple(normal(40, 10 + at) + 3 * torch.eye(D)[at] for at in range(4))

    def test_a_detector_adapts_to_what_has_arrived(self) -> None:
        detector = Adapting(width=8, rounds=4, rate=0.1)
        state = detector.meta_learn(self.kinds[:2], BACKGROUND)
        arrived, asked = self.kinds[2][:16], self.kinds[2][16:]
        before = above(detector.score(state, asked), detector.score(state, BACKGROUND))
        adapted = detector.adapt(state, arrived, BACKGROUND)
        after = above(detector.score(adapted, asked), detector.score(adapted, BACKGROUND))
        assert after > max(before + 0.1, 0.7)
        again = detector.meta_learn(self.kinds[:2], BACKGROUND)
        assert all(torch.equal(state[key], again[key]) for key in state)

    def test_moments_move_towards_those_of_the_new(self) -> None:
        moments = Moments(share=0.5)
        state = moments.adapt(moments.fit(self.kinds[0]), self.kinds[1][:16])
        assert float(state["weights"].sum()) == pytest.approx(1.0)
        known, unknown = moments.score(state, self.kinds[1][16:]), moments.score(state, -INSIDE)
        assert above(known, unknown) > 0.9
