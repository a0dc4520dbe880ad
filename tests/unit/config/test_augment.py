"""Each rule fires with its own sentence, and all of them at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from qwen_audio_train.config.augment import AugmentConfig, NoiseConfig, SpecAugmentConfig, augment_problems

NAN = float("nan")
BAD: list[tuple[AugmentConfig, str]] = [
    (AugmentConfig(speed_factors=[0.4]), "a.speed_factors has 0.4: a factor lies in [0.5, 2.0]"),
    (AugmentConfig(speed_factors=[NAN]), "a.speed_factors has nan"),
    (AugmentConfig(speed_factors=[0.905]), "a.speed_factors has 0.905: a factor is a multiple of 0.01"),
    (AugmentConfig(speed_factors=[0.9, 1.0, 0.9]), "a.speed_factors repeats 0.9"),
    (AugmentConfig(telephone_probability=1.1), "a.telephone_probability=1.1 must lie in [0, 1]"),
    (AugmentConfig(telephone_probability=NAN), "a.telephone_probability=nan must lie in [0, 1]"),
    (AugmentConfig(gain_db_min=3.0), "a.gain_db_min=3.0 is above a.gain_db_max=0.0"),
    (AugmentConfig(gain_db_max=100.0), "a.gain_db_max=100.0 must lie in [-60, 60] dB"),
    (AugmentConfig(noise=NoiseConfig(probability=0.5)), "a.noise.probability=0.5 needs a.noise.shard_set"),
    (AugmentConfig(noise=NoiseConfig(probability=-0.5)), "a.noise.probability=-0.5 must lie in [0, 1]"),
    (AugmentConfig(noise=NoiseConfig("/nowhere")), "a.noise.shard_set=/nowhere is not a shard set"),
    (AugmentConfig(noise=NoiseConfig(snr_db_min=30.0)), "a.noise.snr_db_min=30.0 is above a.noise.snr_db_max=20.0"),
    (AugmentConfig(noise=NoiseConfig(snr_db_min=-90.0)), "a.noise.snr_db_min=-90.0 must lie in"),
    (AugmentConfig(spec_augment=SpecAugmentConfig(probability=2.0)), "a.spec_augment.probability=2.0 must lie in"),
    (
        AugmentConfig(spec_augment=SpecAugmentConfig(longest_mask_share=-1.0)),
        "a.spec_augment.longest_mask_share=-1.0 must lie in",
    ),
    *(
        (AugmentConfig(spec_augment=SpecAugmentConfig(**{name: -1})), f"a.spec_augment.{name}=-1 must be 0 or more")
        for name in ("warp_frames", "frequency_masks", "longest_mask_bins", "time_masks", "longest_mask_frames")
    ),
]


@pytest.mark.parametrize(("config", "start"), BAD)
def test_each_problem_has_its_sentence(config: AugmentConfig, start: str) -> None:
    assert any(problem.startswith(start) for problem in augment_problems("a", config))


def test_all_problems_come_at_once() -> None:
    config = AugmentConfig(
        speed_factors=[0.1],
        telephone_probability=-1.0,
        gain_db_min=1.0,
        noise=NoiseConfig(probability=3.0),
        spec_augment=SpecAugmentConfig(time_masks=-1),
    )
    assert len(list(augment_problems("a", config))) == 6


def test_off_and_the_usual_settings_have_none(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    usual = AugmentConfig(
        speed_factors=[0.9, 1.0, 1.1],
        noise=NoiseConfig(str(tmp_path), probability=0.5),
        telephone_probability=0.1,
        gain_db_min=-6.0,
        gain_db_max=6.0,
        spec_augment=SpecAugmentConfig(probability=1.0),
    )
    for config in (AugmentConfig(), usual, replace(usual, speed_factors=[0.57, 0.58, 1.15])):
        assert not list(augment_problems("a", config))


def test_everything_is_off_by_default() -> None:
    config = AugmentConfig()
    assert not config.speed_factors
    assert [config.noise.probability, config.telephone_probability, config.spec_augment.probability] == [0, 0, 0]
    assert config.gain_db_min == config.gain_db_max == 0


def test_it_can_be_filled_in_by_composition() -> None:
    """Also where a frozen dataclass cannot: see config/augment.py."""
    raw = OmegaConf.merge(
        OmegaConf.structured(AugmentConfig), {"speed_factors": [0.9, 1], "noise": {"probability": 0.5}}
    )
    made = OmegaConf.to_object(raw)
    assert made == AugmentConfig(speed_factors=[0.9, 1.0], noise=NoiseConfig(probability=0.5))
