from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import gigaspeech
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of, tone


def segment(number: int, begin: float, end: float, text: str, *subsets: str) -> dict[str, object]:
    return {
        "sid": f"POD0000000001_S{number:07d}",
        "speaker": "N/A",
        "begin_time": begin,
        "end_time": end,
        "text_tn": text,
        "subsets": [f"{{{subset}}}" for subset in subsets],
    }


@pytest.fixture
def release(tmp_path: Path) -> Path:
    root = tmp_path / "GigaSpeech"
    path = root / "audio/podcast/P0001/POD0000000001.opus"
    path.parent.mkdir(parents=True)
    # A second of silence, a second of tone, silence again.
    recording = np.concatenate([np.zeros(48_000), tone(48_000), np.zeros(48_000)]).astype(np.float32)
    soundfile.write(path, recording, 48_000, format="OGG", subtype="OPUS")
    segments = [
        segment(1, 1.0, 2.0, "WELL <COMMA> IT'S HERE <PERIOD>", "XL", "L", "M", "S", "XS"),
        segment(2, 0.0, 0.5, "<SIL>", "XL", "XS"),
        segment(3, 0.0, 0.5, "<MUSIC> <NOISE>", "XL", "XS"),
        segment(4, 2.0, 2.5, "IS IT <QUESTIONMARK> YES <EXCLAMATIONPOINT>", "XL", "XS"),
        segment(5, 2.0, 2.5, "ONLY IN XL", "XL"),
        segment(6, 2.5, 4.0, "TOO LATE", "XL", "XS"),
        segment(7, 0.0, 0.5, "WHAT <LAUGH>", "XL", "XS"),
        segment(8, 0.0, 0.5, "<PERIOD>", "XL", "XS"),
    ]
    shared = {"title": 'a "}]', "url": "", "duration": 3.0, "sample_rate": 48_000, "channels": 1, "format": "opus"}
    name = str(path.relative_to(root))
    audios = [
        {"aid": "POD0000000001", "path": name, **shared, "segments": segments},
        {"aid": "POD0000000002", "path": name, **shared, "segments": [segment(9, 0.5, 1.5, "DEV", "DEV")]},
        {"aid": "POD0000000003", "path": "../../x.opus", **shared, "segments": [segment(10, 0.5, 1.5, "OUT", "XS")]},
    ]
    manifest = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    (root / "GigaSpeech.json").write_text(json.dumps(manifest, indent=1))
    return root


@pytest.mark.parametrize("chunk", [7, 1000, 1 << 20])
def test_cuts_segments_and_cleans_their_texts(
    release: Path, tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gigaspeech, "CHUNK_CHARACTERS", chunk)
    run(gigaspeech, release, tmp_path / "out", "--subsets", "XS", "DEV")
    folder = tmp_path / "out" / "gigaspeech_xs"
    key = "POD0000000001_S000000"
    assert texts_of(folder) == {f"{key}1": "well, it's here.", f"{key}4": "is it? yes!"}
    skipped = skipped_of(folder)
    assert "ends 1.00 s before the span does" in skipped.pop(f"{key}6")
    assert "not a file below" in skipped.pop("POD0000000001_S0000010")
    assert skipped == {
        f"{key}2": "no speech: <SIL>",
        f"{key}3": "no speech: <MUSIC> <NOISE>",
        f"{key}7": "unknown tag <LAUGH>",
        f"{key}8": "no speech: <PERIOD>",
    }
    assert list(texts_of(tmp_path / "out" / "gigaspeech_dev").values()) == ["dev"]


def test_the_clip_is_the_segment(release: Path, tmp_path: Path) -> None:
    run(gigaspeech, release, tmp_path / "out", "--subsets", "XS")
    shards = ShardSet.open(tmp_path / "out" / "gigaspeech_xs")
    speech, silence = (shards.read_clip(shards.record(i).clips[0], shards.record(i).origin) for i in range(2))
    assert (len(speech), len(silence)) == (16_000, 8000)
    assert np.abs(speech[500:-500]).max() > 0.25
    assert np.abs(silence[500:]).max() < 0.01


def test_a_cut_manifest_is_an_error(release: Path) -> None:
    path = release / "GigaSpeech.json"
    whole = path.read_text()
    for cut in (whole[: len(whole) // 2], whole[: whole.rindex("]")], "{}"):
        path.write_text(cut)
        with pytest.raises(ConfigError, match="its list 'audios' has no end"):
            list(gigaspeech.recordings_of(path))
