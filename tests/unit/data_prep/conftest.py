from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


def tone(num_samples: int, seed: int = 0) -> np.ndarray:
    frequency_hz = 200 + 37 * seed
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(num_samples) / 16_000)).astype(np.float32)


@pytest.fixture
def write_audio() -> Callable[..., Path]:
    def write(path: Path, num_samples: int = 3200, seed: int = 0, rate_hz: int = 16_000) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(num_samples, seed), rate_hz)
        return path

    return write
