"""What a frozen encoder said once is what it would say now."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
import torch

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.pipeline import encoded_clips as module
from qwen_audio_train.pipeline.clips import EncodedSource, MelSource
from qwen_audio_train.pipeline.encoded_clips import EncodedClips, encode_set, fill
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.training.initial_model import encoded_clips
from qwen_audio_train.training.runtime import Ranks
from tests import sets

CPU = torch.device("cpu")
ONE = torch.device("meta")  # not a CPU: one lane


@pytest.fixture(scope="module")
def model(workshop):
    return load_model(str(workshop.folder / "model")).eval()


@pytest.fixture
def shards(workshop):
    return ShardSet.open(workshop.folder / "sft")


def test_kept_states_equal_live_ones(workshop, model, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 120)  # several groups
    encoded = encode_set(model, str(workshop.folder / "sft"), str(tmp_path), shows_progress=False)
    log_mel = LogMel(80)
    seen = 0
    for i in range(len(shards)):
        record = shards.record(i)
        for clip in record.clips:
            states = encoded.read(clip).states_AD
            mel = log_mel(shards.read_clip(clip, record.origin))
            live = model.encode_mels([mel], [lengths.mel_frames(clip.num_samples)]).detach().numpy()
            assert states.shape == (lengths.audio_tokens(clip.num_samples), 32)
            np.testing.assert_allclose(states, live, rtol=1e-5, atol=1e-5)
            seen += 1
    assert seen == 16
    assert encoded.folder == tmp_path / "encoded" / model.encoder_fingerprint()


def test_training_on_kept_states_equals_training_on_clips(workshop, model, tmp_path):
    encoded = encode_set(model, str(workshop.folder / "dpo"), str(tmp_path), shows_progress=False)
    processor = load_processor(str(workshop.folder / "model"))
    for stage in ("pretrain", "sft"):
        encoded = encode_set(model, str(workshop.folder / stage), str(tmp_path), shows_progress=False)
        config = workshop.config(stage, tmp_path, "trainable=llm")
        live, kept = (stage_batches(config, Front.of(processor, e), rank=0, world=1) for e in (None, encoded))
        for a, b in zip(live.loader(), kept.loader(), strict=True):
            assert ("mels" in a["rows"], "mels" in b["rows"]) == (True, False)
            with torch.no_grad():
                torch.testing.assert_close(model(**b).log_probs, model(**a).log_probs, rtol=1e-5, atol=1e-5)


def test_interrupted_filling_goes_on(model, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 60)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one lane: what was made before the break is kept
    made: list[int] = []

    def encode(mels, mel_frames):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(len(mels))
        return model.encode_mels(mels, mel_frames)

    def go_on(how, folder):
        return fill(folder, shards, encode=how, width=32, num_mel_bins=80, device=CPU, shows_progress=False)

    with pytest.raises(KeyboardInterrupt):
        go_on(encode, tmp_path / "broken")
    index = json.loads((tmp_path / "broken" / "index.json").read_text())
    assert len(index["clips"]) == sum(made)
    # Killed harder: states that no index names.
    with (tmp_path / "broken" / "states.f32").open("ab") as file:
        file.write(b"\1" * 77)
    rest: list[int] = []

    def counting(mels, mel_frames):
        rest.append(len(mels))
        return model.encode_mels(mels, mel_frames)

    resumed, whole = go_on(counting, tmp_path / "broken"), go_on(model.encode_mels, tmp_path / "whole")
    assert sum(made) + sum(rest) == 16
    for i in range(len(shards)):
        for clip in shards.clips(i):
            assert np.array_equal(resumed.read(clip).states_AD, whole.read(clip).states_AD)
    again = go_on(lambda *args: pytest.fail("encoded again"), tmp_path / "whole")
    assert shards.clips(0)[0] in again


def test_another_encoder_has_another_folder_and_other_towers_do_not_matter(workshop):
    model = load_model(str(workshop.folder / "model"))
    before = model.encoder_fingerprint()
    with torch.no_grad():
        model.lm_head.weight.add_(1)
        assert model.encoder_fingerprint() == before
        model.model.audio_tower.layers[1].fc2.bias[0] += 1e-3
    assert model.encoder_fingerprint() != before


def test_sources_read_what_the_collator_takes_and_mask_by_seed(model, workshop, shards, tmp_path):
    encoded = encode_set(model, str(workshop.folder / "sft"), str(tmp_path), shows_progress=False)
    record = shards.record(0)
    clip = record.clips[0]
    features = MelSource(shards, LogMel(80)).read(clip, record.origin, key=0)
    assert features.mel_MF.shape == (80, lengths.input_mel_frames(clip.num_samples))
    masked = EncodedSource(EncodedClips(encoded.folder), mask_spans=8, mask_span_tokens=4)
    first, same, other = (masked.read(clip, record.origin, key=seed).states_AD for seed in (1, 1, 2))
    plain = encoded.read(clip).states_AD
    assert np.array_equal(first, same)
    assert not np.array_equal(first, plain)
    assert not np.array_equal(first, other)
    assert np.array_equal(encoded.read(clip).states_AD, plain), "what is kept is never changed"


def test_two_processes_do_not_fill_at_the_same_time(model, shards, tmp_path):
    encoding = threading.Lock()

    def alone(mels, mel_frames):
        assert encoding.acquire(blocking=False)
        states = model.encode_mels(mels, mel_frames)
        encoding.release()
        return states

    def run():
        filled.append(fill(tmp_path, shards, encode=alone, width=32, num_mel_bins=80, device=ONE, shows_progress=False))

    filled: list[EncodedClips] = []
    runs = [threading.Thread(target=run) for _ in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert len(filled) == 2


def test_every_source_of_a_mixture_is_encoded_and_equals_its_clips(workshop, model, tmp_path):
    """Two sets that share clips, one of them filtered."""
    more = sets.pretrain_set(tmp_path / "more", num_samples=30)
    sources = (
        f"a: {{set: {workshop.folder / 'pretrain'}, weight: 2}}, b: {{set: {more}, weight: 1, tasks: [translate]}}"
    )
    overrides = (f"+data.sources={{{sources}}}", f"data.cache_dir={tmp_path / 'cache'}", "trainable=llm")
    config = workshop.config(
        "pretrain", tmp_path / "run", "data.train=''", *overrides, "data.encode_once=true", steps=12
    )
    (tmp_path / "run").mkdir()
    source = str(workshop.folder / "model")
    encoded = encoded_clips(config, source, Ranks(rank=0, world=1, uses_cpu=True))
    processor = load_processor(source)
    live, kept = (stage_batches(config, Front.of(processor, e), rank=0, world=1) for e in (None, encoded))
    seen = set()
    for planned, a, b in zip(kept.bins(), live.loader(), kept.loader(), strict=True):
        assert b.failures == ()
        seen |= set(zip(planned.sources.tolist(), planned.samples.tolist(), strict=True))
        with torch.no_grad():
            torch.testing.assert_close(model(**b).log_probs, model(**a).log_probs, rtol=1e-5, atol=1e-5)
    assert {number for number, _ in seen} == {0, 1}
    digests = [c.sha256 for f in (workshop.folder / "pretrain", more) for c in clips_of(ShardSet.open(f))]
    kept_clips = json.loads((encoded.folder / "index.json").read_text())["clips"]
    assert sorted(kept_clips) == sorted(set(digests)), "each clip once"
    assert len(set(digests)) < len(digests)


def clips_of(shards):
    return [clip for i in range(len(shards)) for clip in shards.record(i).clips]
