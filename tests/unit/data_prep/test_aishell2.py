from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import aishell2
from qwen_audio_train.errors import ConfigError
from tests.unit.data_prep.conftest import run, skipped_of, texts_of


@pytest.fixture
def release(tmp_path: Path, write_audio: Callable[..., Path]) -> Path:
    root = tmp_path / "AISHELL-2"
    for folder, prefix in (("iOS/data", "IC0001W0"), ("iOS/test", "IT0011W0"), ("Mic/dev", "MD0012W0")):
        names = [f"{prefix}{number:03d}" for number in range(3)]
        for number, name in enumerate(names):
            write_audio(root / folder / "wav" / name[:6] / f"{name}.wav", 3200 + number, seed=number)
        lines = [
            f"{names[0]}\t我要听HELLO Kitty",
            f"{names[1]}\t\uff21\uff30\uff30打开，\uff15个",
            f"{prefix}999\t没有",
            "broken",
        ]
        (root / folder / "trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    scp = [f"IC0001W0{n:03d}\twav/IC0001/IC0001W0{n:03d}.wav" for n in range(3)] + ["IC0001W0999\t/etc/hostname.wav"]
    (root / "iOS/data/wav.scp").write_text("\n".join(scp) + "\n")
    return root


def test_makes_training_and_evaluation_sets(release: Path, tmp_path: Path) -> None:
    run(aishell2, tmp_path, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"aishell2_train", "aishell2_ios_test", "aishell2_mic_dev"}
    train, test = tmp_path / "out" / "aishell2_train", tmp_path / "out" / "aishell2_ios_test"
    assert texts_of(train) == {"IC0001W0000": "我要听hello kitty", "IC0001W0001": "app打开，5个"}
    assert texts_of(test) == {"IT0011W0000": "我要听hello kitty", "IT0011W0001": "app打开，5个"}
    assert skipped_of(test) == {
        "IT0011W0999": "transcript without a recording",
        "IT0011W0002": "recording without a transcript",
        "line-4": "trans.txt line 4: 1 fields, not 2",
    }
    assert "not a file below" in skipped_of(train)["IC0001W0999"]


def test_says_what_is_missing(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no Android/dev/trans.txt"):
        run(aishell2, release, tmp_path / "out", "--sets", "android_dev")
