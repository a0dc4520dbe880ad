from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import vocalsound
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of

CLASSES = """index,mid,display_name
0,/m/01j3sz,"Laughter"
1,/m/07plz5l,"Sigh"
2,/m/01b_21,"Cough"
3,/m/0dl9sf8,"Throat clearing"
4,/m/01hsr_,"Sneeze"
5,/m/07ppn3j,"Sniff"
"""


@pytest.fixture
def release(tmp_path: Path, write_audio: Callable[..., Path]) -> Path:
    root = tmp_path / "VocalSound"
    names = ["f0003_0_laughter", "m0012_0_throatclearing", "m0012_0_sigh", "f0003_0_cough", "f0003_0_sniff"]
    for number, name in enumerate(names):
        write_audio(root / "audio_16k" / f"{name}.wav", 4000 + number, seed=number)
    (root / "audio_16k/f0003_0_sniff.wav").write_bytes(b"RIFF....")
    labels = ["/m/01j3sz", "/m/0dl9sf8", "/m/01b_21", "/m/unknown", "/m/07ppn3j", "/m/01hsr_", "/m/01j3sz"]
    names += ["f0003_0_sneeze", "readme"]
    data = [
        {"wav": f"/data/other/machine/audio_16k/{name}.wav", "labels": label}
        for name, label in zip(names, labels, strict=True)
    ]
    (root / "datafiles").mkdir()
    (root / "datafiles/te.json").write_text(json.dumps({"data": data}))
    (root / "class_labels_indices_vs.csv").write_text(CLASSES)
    return root


def test_maps_class_codes_to_names(release: Path, tmp_path: Path) -> None:
    run(vocalsound, release, tmp_path / "out", "--splits", "test")
    folder = tmp_path / "out" / "vocalsound_test"
    assert texts_of(folder) == {"f0003_0_laughter": "laughter", "m0012_0_throatclearing": "throat clearing"}
    record = ShardSet.open(folder).record(0)
    assert (record.task, record.extra) == ("vocal_sound", {"speaker": "f0003"})
    skipped = skipped_of(folder)
    assert skipped["m0012_0_sigh"] == "label '/m/01b_21' (cough) of a file named m0012_0_sigh.wav"
    assert skipped["f0003_0_cough"] == "label '/m/unknown' (unknown) of a file named f0003_0_cough.wav"
    assert "wav without a data chunk" in skipped["f0003_0_sniff"]
    assert "No such file" in skipped["f0003_0_sneeze"]
    assert "unknown form of file name" in skipped["entry-6"]
    assert len(skipped) == 5


def test_says_what_is_missing(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no datafiles/tr.json"):
        run(vocalsound, release, tmp_path / "out")
    (release / "class_labels_indices_vs.csv").unlink()
    with pytest.raises(ConfigError, match=r"no class_labels_indices_vs.csv"):
        run(vocalsound, release, tmp_path / "out")
