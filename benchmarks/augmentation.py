"""What augmentation costs a second of audio, and a picture of what it does to a mel.

python benchmarks/augmentation.py --json FILE
python benchmarks/augmentation.py --picture docs/augmentation.png
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.augment import Augmenter
from qwen_audio_train.audio.decode import Samples, decode_audio, encode_flac
from qwen_audio_train.audio.draws import augmentation_key
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.config.augment import AugmentConfig, NoiseConfig, SpecAugmentConfig
from qwen_audio_train.samples import ClipFeatures, FloatArray

SECONDS = 10
REPEATS = 30
NUM_MEL_BINS = 128
NOISE = NoiseConfig("synthetic", probability=1.0, snr_db_min=10.0, snr_db_max=10.0)
AUGMENTATIONS = {
    "speed": AugmentConfig(speed_factors=[0.9]),
    "noise": AugmentConfig(noise=NOISE),
    "telephone": AugmentConfig(telephone_probability=1.0),
    "gain": AugmentConfig(gain_db_min=6.0, gain_db_max=6.0),
    "spec_augment": AugmentConfig(spec_augment=SpecAugmentConfig(probability=1.0)),
}


class HumNoises:
    """One synthetic noise, made once: the cost of mixing alone."""

    def __init__(self) -> None:
        noise = np.random.default_rng(1).standard_normal(4 * lengths.SAMPLING_RATE_HZ)
        self._noise = noise.astype(np.float32)

    def __len__(self) -> int:
        return 1

    def read(self, number: int) -> Samples:
        """The noise."""
        return self._noise


def chirping_clip(seconds: float) -> Samples:
    """Syllables of a rising and falling voice with harmonics up to 7 kHz."""
    times = np.arange(int(seconds * lengths.SAMPLING_RATE_HZ)) / lengths.SAMPLING_RATE_HZ
    pitch_hz = 160 + 40 * np.sin(2 * np.pi * 0.7 * times) + 15 * np.sin(2 * np.pi * 2.3 * times)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / lengths.SAMPLING_RATE_HZ
    voice = sum(np.sin(number * phase) / number for number in range(1, 36))
    syllables = np.clip(np.sin(2 * np.pi * 1.6 * times), 0, 1) ** 0.5
    breath = 1e-3 * np.random.default_rng(0).standard_normal(len(times))
    return np.asarray(0.15 * voice * syllables + breath, dtype=np.float32)


def features(log_mel: LogMel, samples: Samples) -> ClipFeatures:
    """The clip's mel."""
    return ClipFeatures(log_mel(samples), lengths.mel_frames(len(samples)))


def milliseconds_per_second(work: Callable[[], object]) -> float:
    """Median time of ``work`` on ``SECONDS`` of audio."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000 / SECONDS


def measure() -> dict[str, float]:
    """Milliseconds a second of audio, of each augmentation and of what a clip costs anyway."""
    clip, log_mel, key = chirping_clip(SECONDS), LogMel(NUM_MEL_BINS), augmentation_key(0, 0, 0)
    mel, flac = features(log_mel, clip), encode_flac(np.clip(clip, -1, 1 - 2**-15))
    costs = {
        "decode_flac": milliseconds_per_second(lambda: decode_audio(flac, "flac")),
        "log_mel": milliseconds_per_second(lambda: log_mel(clip)),
    }
    for name, config in {"off": AugmentConfig(), **AUGMENTATIONS}.items():
        augmenter = Augmenter(config, HumNoises())

        def work(augmenter: Augmenter = augmenter) -> object:
            return augmenter.waveform(clip, key), augmenter.features(mel, key)

        costs[name] = milliseconds_per_second(work)
    return costs


def draw(path: Path) -> None:
    """Six small mels: the clip, and each augmentation that a mel shows."""
    import matplotlib  # noqa: PLC0415 - the measurement needs no pictures

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415 - comes with matplotlib

    clip, log_mel, key = chirping_clip(4), LogMel(NUM_MEL_BINS), augmentation_key(0, 0, 5)
    mels: dict[str, FloatArray] = {"the clip": log_mel(clip)}
    titles = {"speed": "speed 0.9", "noise": "noise at 10 dB", "telephone": "telephone", "spec_augment": "SpecAugment"}
    for name, title in titles.items():
        augmenter = Augmenter(AUGMENTATIONS[name], HumNoises())
        mels[title] = augmenter.features(features(log_mel, augmenter.waveform(clip, key)), key).mel_MF
    mels["all of them"] = _all_at_once(clip, log_mel, key)
    figure, axes = pyplot.subplots(2, 3, figsize=(10, 4.2), sharex=True, sharey=True, layout="constrained")
    for axis, (title, mel_MF) in zip(axes.flat, mels.items(), strict=True):
        seconds = mel_MF.shape[1] / 100
        axis.imshow(
            mel_MF, origin="lower", aspect="auto", extent=(0, seconds, 0, NUM_MEL_BINS), vmin=-1, vmax=1.5, cmap="magma"
        )
        axis.set_title(title, fontsize=9)
        axis.set_facecolor("white")
        axis.set_xlim(0, 4.5)
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("mel bin", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)


def _all_at_once(clip: Samples, log_mel: LogMel, key: int) -> FloatArray:
    config = AugmentConfig(
        speed_factors=[0.9], noise=NOISE, telephone_probability=1.0, spec_augment=SpecAugmentConfig(probability=1.0)
    )
    augmenter = Augmenter(config, HumNoises())
    return augmenter.features(features(log_mel, augmenter.waveform(clip, key)), key).mel_MF


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the costs go")
    parser.add_argument("--picture", type=Path, help="draw the picture of the documentation instead of measuring")
    options = parser.parse_args(arguments)
    if options.picture is not None:
        draw(options.picture)
        return 0
    costs = measure()
    print(f"milliseconds a second of audio (one thread, clips of {SECONDS} s)")
    for name, cost in costs.items():
        print(f"{name:14} {cost:7.3f}   {cost / costs['log_mel']:5.2f} x the log-mel")
    if options.json is not None:
        options.json.write_text(json.dumps({"milliseconds_per_second": costs}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
