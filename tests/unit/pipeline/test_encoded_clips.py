"""What a frozen encoder said once is what it would say now."""

from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.pipeline import encoded_clips as module
from qwen_audio_train.pipeline.clips import EncodedSource, MelSource
from qwen_audio_train.pipeline.encoded_clips import EncodedClips, encode_sets, fill
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.training.initial_model import encoded_clips
from qwen_audio_train.training.runtime import Ranks
from tests import sets

CPU = torch.device("cpu")
SMALL = {"width": 32, "num_mel_bins": 80, "most_bytes": 10**9, "shows_progress": False}
ONE = torch.device("meta")  # not a CPU: one lane


@pytest.fixture(scope="module")
def model(workshop):
    return load_model(str(workshop.folder / "model")).eval()


@pytest.fixture
def shards(workshop):
    return ShardSet.open(workshop.folder / "sft")


def test_kept_states_equal_live_ones(workshop, model, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 120)  # several groups
    encoded = encode_sets(model, [str(workshop.folder / "sft")], str(tmp_path), most_gb=1, shows_progress=False)
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
    encoded = encode_sets(model, [str(workshop.folder / "dpo")], str(tmp_path), most_gb=1, shows_progress=False)
    processor = load_processor(str(workshop.folder / "model"))
    for stage in ("pretrain", "sft"):
        encoded = encode_sets(model, [str(workshop.folder / stage)], str(tmp_path), most_gb=1, shows_progress=False)
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
        return fill(folder, [shards], encode=how, device=CPU, **SMALL)

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
    encoded = encode_sets(model, [str(workshop.folder / "sft")], str(tmp_path), most_gb=1, shows_progress=False)
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
        filled.append(fill(tmp_path, [shards], encode=alone, device=ONE, **SMALL))

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


def bytes_of(shards):
    clips = {clip.sha256: clip for clip in clips_of(shards)}
    return sum(lengths.audio_tokens(clip.num_samples) for clip in clips.values()) * 32 * 4


def test_what_exceeds_the_cap_is_refused_before_anything_is_encoded(model, shards, tmp_path, caplog):
    def never(*args):
        raise AssertionError("encoded")

    def go_on(how, name, most_bytes):
        return fill(tmp_path / name, [shards], encode=how, device=ONE, **{**SMALL, "most_bytes": most_bytes})

    needed = bytes_of(shards)
    says = r"16 clips take 0\.000 GB.*is exceeded\. Set encoded_cache_gb=0\.001 or more.*cache_dir.*encode_once=false"
    with pytest.raises(ConfigError, match=says):
        go_on(never, "a", needed - 1)
    assert (tmp_path / "a" / "states.f32").stat().st_size == 0
    encoded = go_on(model.encode_mels, "a", needed)
    assert (tmp_path / "a" / "states.f32").stat().st_size == needed
    assert "outputs of 16 clips take" in caplog.text
    # What is there already is used under any cap; another encoder's counts too.
    assert clips_of(shards)[0] in go_on(never, "a", 1)
    assert encoded.width == 32
    with pytest.raises(ConfigError, match="is exceeded"):
        go_on(never, "b", 2 * needed - 1)
    go_on(model.encode_mels, "b", 2 * needed)


def test_a_disk_without_room_is_said_before_anything_is_encoded(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, bytes_of(shards) - 1))
    with pytest.raises(ConfigError, match=r"the disk has 0\.\d+ GB left\. Make room"):
        fill(tmp_path, [shards], encode=None, device=ONE, **SMALL)


def test_the_cap_counts_all_sets_of_a_mixture_at_once(workshop, model, tmp_path):
    """Each would fit alone."""
    folders = [workshop.folder / "pretrain", sets.chat_set(tmp_path / "chat", num_samples=30)]
    needed = sum(bytes_of(ShardSet.open(folder)) for folder in folders)
    with pytest.raises(ConfigError, match="is exceeded"):
        encode_sets(model, [str(f) for f in folders], str(tmp_path), most_gb=0.6 * needed / 1e9, shows_progress=False)
    assert [path.stat().st_size for path in tmp_path.glob("encoded/*/states.f32")] == [0]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_loss_and_gradients_on_kept_states_equal_those_on_clips(workshop, tmp_path, stage):
    """Of projector and language model, at the first step of a run, through the trainer's own loss."""
    found = []
    for name, override in (("live", "false"), ("kept", "true")):
        overrides = ("trainable=projector_llm", f"data.encode_once={override}", f"data.cache_dir={tmp_path / 'cache'}")
        trainer = workshop.trainer(stage, workshop.config(stage, tmp_path / name, *overrides))
        batches = [batch for batch, _ in zip(trainer.batches.loader(), range(2), strict=False)]
        assert ("audio_states" in batches[0]["rows"]) == (name == "kept")
        count = sum(trainer.count_items(batch) for batch in batches)
        trainer.model.train()
        loss = sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=count) for batch in batches)
        loss.backward()
        gradients = {key: p.grad for key, p in trainer.model.named_parameters() if p.requires_grad}
        found.append((float(loss.detach()), gradients))
    (live, expected), (kept, got) = found
    assert kept == pytest.approx(live, rel=1e-6)
    projector = "model.multi_modal_projector.linear.weight"
    assert expected[projector].norm() > 1e-4
    norm = max(float(gradient.norm()) for gradient in expected.values())
    for key, gradient in expected.items():
        assert float((got[key] - gradient).norm()) <= 1e-5 * max(float(gradient.norm()), 1e-2 * norm), key
