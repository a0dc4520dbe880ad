from __future__ import annotations

import numpy as np

from qwen_audio_train.plan.order import key, mixed, permutation


def test_splitmix64_reference_values() -> None:
    """First outputs of splitmix64 seeded with 0, as published with the algorithm."""
    state = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert mixed(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_permutation_is_one_and_depends_on_its_key() -> None:
    one, two = permutation(1000, key(1, 2)), permutation(1000, key(2, 1))
    assert np.array_equal(np.sort(one), np.arange(1000))
    assert (one == two).sum() < 20
    assert abs(np.corrcoef(one, np.arange(1000))[0, 1]) < 0.1
