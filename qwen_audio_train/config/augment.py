"""How clips are changed on their way into the model. Everything is off unless it is turned on, source by source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from qwen_audio_train.config.sets import set_problems

SPEED_STEPS = 100
"""Speed factors are multiples of 1/100, so that lengths are exact integers."""
SLOWEST, FASTEST = 0.5, 2.0
LOUDEST_DB = 60.0
"""Largest gain and signal-to-noise ratio, either sign, that is taken for meant."""


# Not frozen: OmegaConf cannot fill in the entries of a dictionary of frozen dataclasses, and data.sources is one.
@dataclass
class SpecAugmentConfig:
    """Masks on the log-mel. The values are the LibriSpeech Basic policy of arXiv 1904.08779, as Qwen-Audio used it."""

    probability: float = 0.0
    """Share of clips that are warped and masked; 0 turns SpecAugment off, 1 is the policy."""
    warp_frames: int = 80
    """W: furthest that a point in time moves (10 ms frames). A clip of 2 W frames or fewer is not warped; 0: none."""
    frequency_masks: int = 1
    longest_mask_bins: int = 27
    """F: widest frequency mask, in mel bins."""
    time_masks: int = 1
    longest_mask_frames: int = 100
    """T: widest time mask, in 10 ms frames."""
    longest_mask_share: float = 1.0
    """p: no time mask is wider than this share of the clip."""


@dataclass
class NoiseConfig:
    """Clips of another shard set, mixed in."""

    shard_set: str = ""
    """Folder of a shard set of noises (holds dataset.json)."""
    probability: float = 0.0
    """Share of clips that get noise; 0 turns noise off."""
    snr_db_min: float = 5.0
    """Clip to noise, by mean power over the whole clip; drawn evenly between the two."""
    snr_db_max: float = 20.0


@dataclass
class AugmentConfig:
    """What may happen to each clip of a source, in this order: speed, noise, telephone, gain, mel, SpecAugment."""

    speed_factors: list[float] = field(default_factory=list)
    """One is drawn a clip and epoch, all alike likely, e.g. [0.9, 1.0, 1.1]; 0.9 is slower and longer. Empty: off."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    telephone_probability: float = 0.0
    """Share of clips that go through a telephone: 300 to 3400 Hz, 8 kHz, mu-law."""
    gain_db_min: float = 0.0
    """Drawn evenly between the two; 0 and 0 turn it off."""
    gain_db_max: float = 0.0
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)


def augment_problems(name: str, config: AugmentConfig) -> Iterator[str]:
    """Every problem of a source's augmentation. ``name`` is how the user writes it, such as ``data.augment``."""
    yield from _speed(name, config.speed_factors)
    yield from _noise(f"{name}.noise", config.noise)
    yield from _share(f"{name}.telephone_probability", config.telephone_probability)
    yield from _range_db(f"{name}.gain_db", config.gain_db_min, config.gain_db_max)
    yield from _spec_augment(f"{name}.spec_augment", config.spec_augment)


def _speed(name: str, factors: list[float]) -> Iterator[str]:
    for factor in factors:
        if not SLOWEST <= factor <= FASTEST:
            yield f"{name}.speed_factors has {factor}: a factor lies in [{SLOWEST}, {FASTEST}]"
        elif abs(factor * SPEED_STEPS - round(factor * SPEED_STEPS)) > 1e-6:
            yield f"{name}.speed_factors has {factor}: a factor is a multiple of {1 / SPEED_STEPS}"
    repeated = sorted({factor for factor in factors if factors.count(factor) > 1})
    if repeated:
        yield f"{name}.speed_factors repeats {', '.join(map(str, repeated))}: name each once, all are alike likely"


def _noise(name: str, noise: NoiseConfig) -> Iterator[str]:
    yield from _share(f"{name}.probability", noise.probability)
    yield from _range_db(f"{name}.snr_db", noise.snr_db_min, noise.snr_db_max)
    if noise.probability and not noise.shard_set:
        yield f"{name}.probability={noise.probability} needs {name}.shard_set: the folder of a shard set of noises"
    yield from set_problems(f"{name}.shard_set", noise.shard_set, required=False)


def _spec_augment(name: str, spec: SpecAugmentConfig) -> Iterator[str]:
    yield from _share(f"{name}.probability", spec.probability)
    yield from _share(f"{name}.longest_mask_share", spec.longest_mask_share)
    for field_name in ("warp_frames", "frequency_masks", "longest_mask_bins", "time_masks", "longest_mask_frames"):
        if getattr(spec, field_name) < 0:
            yield f"{name}.{field_name}={getattr(spec, field_name)} must be 0 or more"


def _share(name: str, value: float) -> Iterator[str]:
    if not 0 <= value <= 1:
        yield f"{name}={value} must lie in [0, 1]"


def _range_db(name: str, lowest: float, highest: float) -> Iterator[str]:
    for end, value in (("min", lowest), ("max", highest)):
        if not -LOUDEST_DB <= value <= LOUDEST_DB:
            yield f"{name}_{end}={value} must lie in [{-LOUDEST_DB:g}, {LOUDEST_DB:g}] dB"
    if lowest > highest:
        yield f"{name}_min={lowest} is above {name}_max={highest}: exchange them"
