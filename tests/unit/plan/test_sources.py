from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.plan.segments import Segment
from qwen_audio_train.plan.sources import SourceOrder, require_mixture, whole_weights
from qwen_audio_train.plan.steps import Plan
from tests import plans


@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 127, 128, 1000])
@pytest.mark.parametrize("slice_samples", [1, 7, 64, 5000])
def test_each_epoch_holds_each_sample_once_in_whole_slices(size: int, slice_samples: int) -> None:
    order = SourceOrder("a", size, seed=3, slice_samples=slice_samples, shuffle=True)
    samples, epochs = order.samples(0, 3 * size)
    assert epochs.tolist() == [0] * size + [1] * size + [2] * size
    for epoch in range(3):
        mine = samples[epoch * size : (epoch + 1) * size]
        assert np.array_equal(np.sort(mine), np.arange(size))
        breaks = np.flatnonzero(np.diff(mine) != 1) + 1
        assert all(part[0] % slice_samples == 0 for part in np.split(mine, breaks))


def test_positions_are_the_same_however_they_are_cut() -> None:
    order, again = (SourceOrder("a", 150, seed=3, slice_samples=7, shuffle=True) for _ in range(2))
    whole, _ = order.samples(0, 600)
    parts = [again.samples(start, start + 37)[0] for start in range(0, 600, 37)]
    assert np.array_equal(whole, np.concatenate(parts)[:600])


def test_epochs_seeds_and_names_differ() -> None:
    first = SourceOrder("a", 6400, seed=3, slice_samples=64, shuffle=True).samples(0, 12_800)[0]
    for name, seed in (("b", 3), ("a", 4)):
        other = SourceOrder(name, 6400, seed=seed, slice_samples=64, shuffle=True).samples(0, 6400)[0]
        assert (other == first[:6400]).mean() < 0.1
    assert (first[6400:] == first[:6400]).mean() < 0.1


def test_unusable_mixtures_are_refused_with_every_reason() -> None:
    with pytest.raises(ConfigError, match="no source"):
        require_mixture([])
    mixture = [*plans.sources({"a": 3}, {"a": Fraction(-1)}), *plans.sources({"a": 0}, {"a": Fraction(0)})]
    with pytest.raises(ConfigError) as caught:
        require_mixture(mixture)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["two sources are called 'a'", "a", "a"]
    with pytest.raises(ConfigError, match="sources without a weight beside others with one: bc"):
        require_mixture(plans.sources({"a": 3, "bc": 3}, {"a": Fraction(1)}))
    with pytest.raises(ConfigError, match="all weights are 0"):
        require_mixture(plans.sources({"a": 3}, {"a": Fraction(0)}))


def identity(sizes: dict[str, int], weights: dict[str, Fraction] | None, window_samples: int) -> dict:
    return Plan(plans.sources(sizes, weights), seed=0, budget=plans.budget(window_samples=window_samples)).identity()


def test_weights_become_the_smallest_whole_numbers() -> None:
    weights = {"a": Fraction(1, 2), "b": Fraction(1, 3), "c": Fraction(0)}
    assert whole_weights(identity({"a": 9, "b": 9, "c": 9}, weights, 50)["sources"]) == (3, 2, 0)
    assert whole_weights(identity({"a": 9, "b": 6}, None, 50)["sources"]) == (3, 2)


def test_every_window_holds_its_exact_share_however_late() -> None:
    weights = {"a": Fraction(7, 10), "b": Fraction(1, 5), "c": Fraction(1, 10)}
    segment = Segment(0, 0, identity({"a": 900, "b": 1700, "c": 30}, weights, 100))
    for window in (0, 1, 25, 10**6, 10**12):
        before, after = segment.positions_of(window), segment.positions_of(window + 1)
        time = segment.time_of(window + 1) - segment.time_of(window)
        assert abs(time - 100) <= 2
        for weight, start, stop in zip(weights.values(), before, after, strict=True):
            assert abs((stop - start) - time * weight) < 1
            assert stop == int(segment.time_of(window + 1) * weight)


def test_by_size_an_epoch_of_the_mixture_is_one_of_each_source() -> None:
    segment = Segment(0, 0, identity({"a": 901, "b": 1700, "c": 3}, None, 100))
    assert segment.epoch_windows == 26
    assert segment.positions_of(26) == (901, 1700, 3)
    assert segment.positions_of(52) == (1802, 3400, 6)


def test_a_source_of_weight_0_is_not_drawn_and_not_counted() -> None:
    weights = {"a": Fraction(1), "b": Fraction(0)}
    segment = Segment(0, 0, identity({"a": 100, "b": 10_000}, weights, 50))
    assert segment.epoch_windows == 2
    assert segment.positions_of(2) == (100, 0)
