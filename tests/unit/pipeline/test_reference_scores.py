"""Files of reference log-probabilities: whole or not there, theirs or refused; parts that survive a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.pipeline.quarantine import Failure
from qwen_audio_train.pipeline.reference_scores import (
    WORDS,
    Parts,
    _header,
    file_name,
    find,
    open_scores,
    places,
    publish,
)
from qwen_audio_train.shards.reader import ShardSet
from tests import sets

IDENTITY = {part: f"{part} 1" for part in WORDS}
SCORES = np.array([[-1.5, -2.5], [np.nan, np.nan], [-3.0, -4.25]], np.float32)


def failure(sample: int, reason: str = "broken") -> Failure:
    return Failure("pairs", "set", "shard-0.tar", f"d-{sample}", sample, reason)


def test_what_was_published_comes_back(tmp_path):
    path = tmp_path / "below" / file_name(IDENTITY)
    publish(path, SCORES, IDENTITY, [failure(1)])
    scores = open_scores(path, IDENTITY, 3)
    np.testing.assert_array_equal(scores.log_probs, SCORES)
    assert not scores.log_probs.flags.writeable
    assert json.loads(_header(path)["unusable"]) == [{"sample": 1, "key": "d-1", "reason": "broken"}]
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing temporary is left"


@pytest.mark.parametrize("part", IDENTITY)
def test_every_part_of_the_identity_is_compared_and_named(tmp_path, caplog, part):
    path = tmp_path / file_name(IDENTITY)
    publish(path, SCORES, IDENTITY, [])
    now = {**IDENTITY, part: "2"}
    assert find([tmp_path], now) is None
    assert f"1 differ(s) in {part}" in caplog.text
    with pytest.raises(CheckpointError) as error:
        open_scores(path, now, 3)
    assert f"What differs: {WORDS[part]} ({part}: {part} 1, now 2). Remedy: delete it" in str(error.value)


def test_all_that_differs_is_named_and_an_unknown_part_differs_too(tmp_path):
    path = tmp_path / file_name(IDENTITY)
    publish(path, SCORES, {**IDENTITY, "weights": "other", "set": "other"}, [])
    with pytest.raises(CheckpointError, match=r"\(set: other, now set 1\); .*\(weights: other, now weights 1\)"):
        open_scores(path, IDENTITY, 3)
    with pytest.raises(CheckpointError, match=r"quantisation \(quantisation: nothing, now nf4\)"):
        open_scores(path, {**IDENTITY, "weights": "other", "set": "other", "quantisation": "nf4"}, 3)


def test_the_file_is_found_in_any_place_and_nothing_is_said_then(tmp_path, caplog):
    first, second = tmp_path / "first", tmp_path / "second"
    publish(second / file_name(IDENTITY), SCORES, IDENTITY, [])
    publish(first / file_name({**IDENTITY, "set": "x"}), SCORES, {**IDENTITY, "set": "x"}, [])
    assert find([first, second], IDENTITY) == second / file_name(IDENTITY)
    assert not caplog.text


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_samples_is_refused(tmp_path, count):
    path = tmp_path / file_name(IDENTITY)
    publish(path, SCORES, IDENTITY, [])
    with pytest.raises(CheckpointError, match=rf"shape \(3, 2\) for {count} samples"):
        open_scores(path, IDENTITY, count)


def test_places_of_a_set_in_a_folder(tmp_path, monkeypatch):
    shards = ShardSet.open(sets.preference_set(tmp_path / "pairs", num_samples=2))
    beside, below = tmp_path / "pairs" / "reference_scores", tmp_path / "cache" / "reference_scores"
    assert places(shards, tmp_path / "cache") == (beside, below / f"pairs-{shards.fingerprint}")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert places(shards, tmp_path / "cache") == (below / f"pairs-{shards.fingerprint}", beside)


def test_a_set_keeps_its_meaning_with_scores_beside_it(tmp_path):
    folder = sets.preference_set(tmp_path / "pairs", num_samples=2)
    before = ShardSet.open(folder).fingerprint
    publish(folder / "reference_scores" / "x.safetensors", SCORES, IDENTITY, [])
    assert ShardSet.open(folder).fingerprint == before


def test_parts_of_several_processes_are_read_together_and_damage_is_left_out(tmp_path):
    one, two = Parts(tmp_path / "x.safetensors"), Parts(tmp_path / "x.safetensors")
    one.add([4, 7], np.array([[-1, -2], [-3, -4]], np.float32), [])
    two.add([5], np.array([[-5, -6]], np.float32), [failure(9), failure(7)])
    one.add([], np.zeros((0, 2), np.float32), [failure(8, "first"), failure(8, "second")])
    one.add([2], np.array([[-7, -8]], np.float32), [])
    assert sorted(one.read().tolist()) == [(2, -7, -8), (4, -1, -2), (5, -5, -6), (7, -3, -4)]
    assert {sample: failed.reason for sample, failed in two.failures().items()} == {9: "broken", 8: "second"}
    path = one.folder / f"{one._name}.part"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert sorted(two.read()["sample"].tolist()) == [4, 5, 7], "a frame that was cut off"
    spoilt = bytearray(data)
    spoilt[12] ^= 1
    path.write_bytes(spoilt)
    assert sorted(two.read()["sample"].tolist()) == [5], "nothing behind damage is trusted"
    path.write_bytes(data + bytes(64))
    assert sorted(two.read()["sample"].tolist()) == [2, 4, 5, 7], "zeros that a crash left hold no sample"
    one.remove()
    assert not one.folder.exists()
