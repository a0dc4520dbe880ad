"""The words behind every augmentation never change."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_audio_train.audio.draws import Draws, Purpose, augmentation_key

KEY_OF_ZEROS = 0x2130748AAAC80268
KEY_OF_CLIP = 0xE20506BFC7C20DB7
FIRST_WORDS = {
    "speed": 0xD4DFD2E9DE8DFA32,
    "noise": 0x691AF6A26BEDA9C2,
    "telephone": 0x4964E67FAE179417,
    "gain": 0x29BDAE28E7A28DCB,
    "spec_augment": 0xF3ABAAC8BE23E8B6,
}


def test_words_are_what_they_have_always_been() -> None:
    assert augmentation_key(0, 0, 0) == KEY_OF_ZEROS
    assert augmentation_key(17, 3, 123_456_789, clip=1) == KEY_OF_CLIP
    drawn = {purpose.name: Draws(KEY_OF_CLIP, purpose).word() for purpose in Purpose}
    assert drawn == FIRST_WORDS


def test_every_part_of_a_key_counts() -> None:
    keys = {
        augmentation_key(seed, epoch, sample, clip)
        for seed in range(4)
        for epoch in range(4)
        for sample in range(20)
        for clip in range(3)
    }
    assert len(keys) == 4 * 4 * 20 * 3


def test_keys_of_any_size_are_taken() -> None:
    assert 0 <= augmentation_key(2**64 - 1, 2**40, 10**12, 7) < 2**64
    assert augmentation_key(-1, 0, 0) == augmentation_key(2**64 - 1, 0, 0)


@pytest.mark.parametrize("purpose", Purpose)
def test_draws_are_even_and_purposes_unrelated(purpose: Purpose) -> None:
    keys = [augmentation_key(5, 0, sample) for sample in range(2000)]
    units = np.array([Draws(key, purpose).unit() for key in keys])
    assert units.min() >= 0
    assert units.max() < 1
    assert abs(units.mean() - 0.5) < 0.02
    counts = np.bincount([Draws(key, purpose).below(7) for key in keys], minlength=7)
    assert counts.min() > 220
    assert len(counts) == 7
    for other in set(Purpose) - {purpose}:
        others = np.array([Draws(key, other).unit() for key in keys])
        assert abs(np.corrcoef(units, others)[0, 1]) < 0.08


def test_words_in_a_row_are_unrelated() -> None:
    draws = Draws(1, Purpose.noise)
    units = np.array([draws.unit() for _ in range(4000)])
    assert abs(np.corrcoef(units[:-1], units[1:])[0, 1]) < 0.06
