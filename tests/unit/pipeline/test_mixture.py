"""Many sources in one run: weights, filters, text without audio, augmentation; and samples that cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.config.load import compose
from qwen_audio_train.errors import CheckpointError, ConfigError, SampleError, ShardError
from qwen_audio_train.model.load import load_processor
from qwen_audio_train.pipeline.batches import BatchBuilder
from qwen_audio_train.pipeline.loading import Draw
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.writer import ShardWriter
from tests import builders, sets
from tests.builders import noise_clip

SHARED = {"source": "synthetic", "license": "CC0-1.0", "split": "train"}


def text_set(folder: Path, num_samples: int = 8) -> Path:
    with ShardWriter(folder, folder.name, split="train", license="CC0-1.0") as writer:
        for i in range(num_samples):
            metadata = {**SHARED, "task": "text", "text_language": "en", "text": f"plain words {i}"}
            writer.write(f"t-{i}", [], metadata)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    sets.pretrain_set(folder / "speech", num_samples=24)
    text_set(folder / "text")
    return folder


@pytest.fixture
def front(workshop) -> Front:
    return Front.of(load_processor(str(workshop.folder / "model")))


@pytest.fixture
def configured(workshop, folder, tmp_path):
    """A pretraining configuration over these sources."""

    def make(sources: str, *overrides: str, steps: int = 6, cache: Path = tmp_path / "cache"):
        given = workshop.overrides("pretrain", tmp_path / "run", *overrides, steps=steps)
        given = [override for override in given if not override.startswith(("data.train", "data.cache_dir"))]
        sources = sources.replace("@", f"{folder}/")
        return compose("pretrain", [*given, f"data.cache_dir={cache}", f"+data.sources={{{sources}}}"])

    return make


BOTH = "speech: {set: @speech, weight: 0.75%s}, text: {set: @text, weight: 0.25}"


def draws_of(batches) -> list[Draw]:
    taken = []
    for planned in batches.bins():
        columns = planned.sources.tolist(), planned.samples.tolist(), planned.epochs.tolist()
        taken += [Draw(*draw) for draw in zip(*columns, strict=True)]
    return taken


def test_text_and_audio_come_by_weight_and_share_batches(configured, front):
    batches = stage_batches(configured(BOTH % "", steps=16), front, rank=0, world=1)
    counts = Counter(draw.source for draw in draws_of(batches))
    assert counts[1] / counts.total() == pytest.approx(0.25, abs=0.05)
    texts, mixed = 0, 0
    for planned, batch in zip(batches.bins(), batches.loader(), strict=True):
        assert batch.usable == (True,) * len(planned)
        assert batch.failures == ()
        kinds = set(planned.sources.tolist())
        mixed += kinds == {0, 1}
        texts += kinds == {1}
        assert len(batch["rows"]["spans"].lengths) == len(planned)
    assert mixed > 0, "a batch of both"
    assert "speech" in batches.table
    assert "75.00%" in batches.table


def test_a_text_is_rendered_plainly_between_two_end_tokens(folder, front):
    rendered = Renderer(front.tokenizer).render_pretrain(ShardSet.open(folder / "text").record(3))
    end = front.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    words = front.tokenizer("plain words 3").input_ids
    assert rendered.input_ids.tolist() == [end, *words, end]
    assert rendered.supervised.tolist() == [False, *[True] * len(words), True]
    assert rendered.clip_tokens == ()


def test_filters_keep_their_samples_with_their_own_numbers(configured, front, folder):
    config = configured("speech: {set: @speech, tasks: [translate], languages: [en, es]}")
    batches = stage_batches(config, front, rank=0, world=1)
    (source,) = batches.builder.sources
    shards = ShardSet.open(folder / "speech")
    kept = [source.number(i) for i in range(len(batches.plan.sources[0]))]
    wanted = [i for i in range(24) if i % 2 and sets.LANGUAGES[i % 3] in ("en", "es")]
    assert kept == wanted
    seen = {source.number(draw.sample) for draw in draws_of(batches)}
    assert {shards.record(number).task for number in seen} == {"translate"}
    lengths = batches.plan.sources[0].lengths
    assert isinstance(lengths.llm_tokens.base, np.memmap)
    batch = batches.builder.build([Draw(0, 2, 0)])
    assert shards.record(wanted[2]).text in front.tokenizer.decode(batch["rows"]["input_ids"][0])
    renders = Renderer(front.tokenizer).render_many([shards.record(i) for i in kept])
    assert lengths.llm_tokens.tolist() == [len(rendered.input_ids) for rendered in renders]


def test_a_sources_prompt_takes_the_place_of_the_tasks_wording(configured, front):
    batches = stage_batches(configured("s: {set: @speech, prompt: 'Go on:'}"), front, rank=0, world=1)
    text = front.tokenizer.decode(next(iter(batches.loader()))["rows"]["input_ids"][0])
    assert "Go on:" in text
    assert "Detect the language" not in text


def test_wrong_filters_are_told_all_at_once_before_anything_is_measured(configured, front, workshop):
    config = configured(
        "a: {set: @speech, tasks: [trancribe], languages: [xx]}, b: {set: @text, tasks: [transcribe]}, "
        f"c: {{set: {workshop.folder / 'dpo'}}}, d: {{set: {workshop.folder / 'sft'}, languages: [en]}}"
    )
    with pytest.raises(ConfigError) as error:
        stage_batches(config, front, rank=0, world=1)
    told = "\n".join(error.value.problems)
    assert len(error.value.problems) == 5
    for expected in (
        "data.sources.a.tasks has unknown trancribe; known: transcribe",
        "data.sources.a.languages has unknown xx",
        "data.sources.b.tasks has transcribe, of which 'text' has no sample; it has: text",
        "data.sources.c.set: 'dpo' holds preference pairs: it is not for stage pretrain",
        "data.sources.d.languages concerns pretraining samples; 'sft' has none",
    ):
        assert expected in told


def test_filters_that_leave_nothing_are_refused(configured, front):
    with pytest.raises(ConfigError, match="leave none of the 24 samples"):
        stage_batches(configured("a: {set: @speech, tasks: [transcribe], languages: [de]}"), front, rank=0, world=1)


def test_augmentation_and_wordings_depend_on_seed_source_epoch_and_sample_only(configured, front):
    augment = ", augment: {speed_factors: [0.8, 1.0, 1.2]}, num_wordings: 4"
    alone = stage_batches(configured(BOTH % augment), front, rank=0, world=1).builder
    other = configured("text: {set: @text}, speech: {set: @speech" + augment + "}")
    mixed = stage_batches(other, front, rank=0, world=1).builder

    def made(builder: BatchBuilder, name: str, epoch: int, sample: int) -> dict[str, torch.Tensor]:
        number = [source.name for source in builder.sources].index(name)
        return builder.build([Draw(number, sample, epoch)])

    equal = builders.equal_batches
    for sample in range(4):
        assert equal(made(alone, "speech", 1, sample), made(mixed, "speech", 1, sample))
    frames = {made(alone, "speech", epoch, 5)["rows"]["clip_spans"].num_positions for epoch in range(12)}
    assert len(frames) == 3, "every speed comes"
    assert not all(equal(made(alone, "speech", 0, sample), made(alone, "speech", 1, sample)) for sample in range(6))


def test_augmented_bins_keep_to_the_budget(configured, front):
    config = configured("s: {set: @speech, augment: {speed_factors: [0.7, 1.3]}}", steps=8)
    for batch in stage_batches(config, front, rank=0, world=1).loader():
        assert batch["rows"]["input_ids"].numel() <= config.batching.llm_tokens_per_bin
        assert batch.failures == ()


NOISY = "s: {set: @speech, augment: {noise: {shard_set: %s, probability: 1, snr_db_min: 10, snr_db_max: 10}}}"


def noise_set(folder: Path) -> Path:
    """Two long noises."""
    with ShardWriter(folder, folder.name, split="train", license="CC0-1.0") as writer:
        for i in range(2):
            fields = {"task": "sound", "audio_language": "zxx", "text_language": "en", "text": "noise"}
            writer.write(f"n-{i}", [(encode_flac(noise_clip(40_000, seed=90 + i)), "flac")], {**SHARED, **fields})
    return folder


def test_noise_comes_from_its_set_at_the_ratio_asked_for(configured, front, folder, tmp_path):
    noises = ShardSet.open(noise_set(tmp_path / "noises"))
    batches = stage_batches(configured(NOISY % (tmp_path / "noises")), front, rank=0, world=1)
    (source,) = batches.builder.sources
    heard = []
    log_mel = source.clips.log_mel

    def listening(samples):
        heard.append(samples)
        return log_mel(samples)

    spied = replace(source, clips=replace(source.clips, log_mel=listening))
    builder = replace(batches.builder, sources=(spied,), is_strict=True)
    speech, places = ShardSet.open(folder / "speech"), set()
    for sample, epoch in [(sample, epoch) for sample in range(4) for epoch in range(3)]:
        builder.build([Draw(0, sample, epoch)])
        record = speech.record(sample)
        clean = speech.read_clip(record.clips[0], record.origin)
        added = heard.pop() - clean
        power_ratio = np.mean(np.square(clean, dtype=np.float64)) / np.mean(np.square(added, dtype=np.float64))
        assert 10 * np.log10(power_ratio) == pytest.approx(10, abs=1e-3)
        places.add(place_in(noises, added))
    assert {number for number, _ in places} == {0, 1}, "both noises"
    assert len(places) > 8, "another stretch for each sample and epoch"


def place_in(noises: ShardSet, added: np.ndarray) -> tuple[int, int]:
    """Which noise ``added`` is a scaled stretch of, and where it begins."""
    for number in range(len(noises)):
        record = noises.record(number)
        noise = noises.read_clip(record.clips[0], record.origin)
        first = int(np.argmax(np.correlate(noise, added, "valid")))
        stretch = noise[first : first + len(added)]
        if np.corrcoef(stretch, added)[0, 1] > 0.999:
            return number, first
    raise AssertionError("not of this set")


def test_noise_is_the_same_in_worker_processes(configured, front, tmp_path):
    batches = stage_batches(configured(NOISY % noise_set(tmp_path / "noises"), steps=2), front, rank=0, world=1)
    here = [batch["rows"]["mels"] for batch in batches.loader()]
    batches.num_workers = 1
    assert all(map(torch.equal, here, [batch["rows"]["mels"] for batch in batches.loader()]))
    quiet = stage_batches(configured("s: {set: @speech}", steps=2), front, rank=0, world=1)
    assert not any(map(torch.equal, here, [batch["rows"]["mels"] for batch in quiet.loader()]))


def test_a_noise_that_cannot_be_had_is_named_and_leaves_the_slot_empty(configured, front, tmp_path):
    noises = noise_set(tmp_path / "noises")
    flip_a_byte(ShardSet.open(noises), 0)
    flip_a_byte(ShardSet.open(noises), 1)
    batches = stage_batches(configured(NOISY % noises), front, rank=0, world=1)
    (failure,) = batches.builder.build([Draw(0, 3, 0)]).failures
    assert (failure.source, failure.sample, failure.dataset) == ("s", 3, "noises")
    assert failure.key in ("n-0", "n-1")
    assert "checksum" in failure.reason


def flip_a_byte(shards: ShardSet, number: int) -> None:
    """Damage a sample's clip."""
    (clip,) = shards.clips(number)
    with clip.shard_path.open("r+b") as file:
        file.seek(clip.offset_bytes + clip.num_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def damaged(folder: Path, *numbers: int) -> Path:
    """A set of 24 in which a byte of each of these samples' clips is flipped."""
    sets.pretrain_set(folder, num_samples=24)
    for number in numbers:
        flip_a_byte(ShardSet.open(folder), number)
    return folder


def samples_of(rows: dict) -> list[dict]:
    """Token ids and, of its one clip, the mels (silence before the next not counted) of each sample of a packed row."""
    ids = rows["input_ids"][0].split(rows["spans"].lengths)
    clip_of_frame = (rows["mel_is_clip"].diff(prepend=torch.zeros(1)) > 0).cumsum(0)
    mels = [rows["mels"][:, (clip_of_frame == k + 1) & (rows["mel_is_clip"] > 0)] for k in range(len(ids))]
    return [{"ids": of_one, "mel": mel} for of_one, mel in zip(ids, mels, strict=True)]


def test_a_bad_sample_leaves_its_slot_empty_and_moves_no_other(configured, front, tmp_path):
    whole = stage_batches(
        configured(f"s: {{set: {sets.pretrain_set(tmp_path / 'a' / 'set')}}}"), front, rank=0, world=1
    )
    broken_folder = damaged(tmp_path / "b" / "set", 7, 8)
    broken = stage_batches(configured(f"s: {{set: {broken_folder}}}"), front, rank=0, world=1)
    bad_slots = 0
    bins = list(whole.bins())
    for planned, same, expected, got in zip(bins, broken.bins(), whole.loader(), broken.loader(), strict=True):
        assert planned.samples.tolist() == same.samples.tolist()
        assert got.usable == tuple(sample not in (7, 8) for sample in planned.samples.tolist())
        bad_slots += len(got.failures)
        assert {(failure.key, failure.sample) for failure in got.failures} <= {("p-7", 7), ("p-8", 8)}
        kept = [row for row, usable in enumerate(got.usable) if usable]
        samples, expected_samples = samples_of(got["rows"]), samples_of(expected["rows"])
        assert len(samples) == len(kept)
        for one, place in zip(samples, kept, strict=True):
            assert builders.equal_batches(one, expected_samples[place])
    assert bad_slots >= 2
    assert all("checksum" in failure.reason for batch in broken.loader() for failure in batch.failures)


def test_a_bin_of_bad_samples_only_adds_nothing(configured, front, tmp_path):
    folder = damaged(tmp_path / "set", 7, 8)
    builder = stage_batches(configured(f"s: {{set: {folder}}}"), front, rank=0, world=1).builder
    batch = builder.build([Draw(0, 7, 0), Draw(0, 8, 0)])
    assert batch.usable == (False, False)
    assert len(batch["rows"]["label_ids"]) == 0
    assert batch["rows"]["audio_source"].numel() == 0


def test_strict_building_raises(configured, front, tmp_path):
    builder = stage_batches(configured(f"s: {{set: {damaged(tmp_path / 'set', 7)}}}"), front, rank=0, world=1).builder
    strict = BatchBuilder(builder.sources, builder.renderer, builder.collator, is_strict=True)
    with pytest.raises(SampleError, match="p-7"):
        strict.build([Draw(0, 7, 0)])


def test_a_lost_shard_is_quarantined_sample_by_sample(configured, front, tmp_path):
    folder = sets.pretrain_set(tmp_path / "set")
    builder = stage_batches(configured(f"s: {{set: {folder}}}"), front, rank=0, world=1).builder
    (shard,) = folder.glob("*.tar")
    shard.unlink()
    builder.sources[0].shards._open.clear()
    batch = builder.build([Draw(0, 3, 0)])
    assert [(failure.shard, failure.key) for failure in batch.failures] == [(shard.name, "")]


def unrenderable_set(folder: Path, bad: int, total: int = 24) -> Path:
    """Pretraining samples of which the first ``bad`` name a task that nobody knows."""
    with ShardWriter(folder, folder.name, split="train", license="CC0-1.0") as writer:
        for i in range(total):
            task = "unheard_of" if i < bad else "transcribe"
            fields = {"task": task, "audio_language": "en", "text_language": "en", "text": f"word {i}"}
            writer.write(f"u-{i}", [(encode_flac(noise_clip(5000, seed=i)), "flac")], {**SHARED, **fields})
    return folder


def test_what_cannot_be_rendered_is_listed_when_measured_and_left_out(configured, front, tmp_path, caplog):
    config = configured(f"s: {{set: {unrenderable_set(tmp_path / 'set', 3)}}}")
    for _ in range(2):  # measured, then from what was kept
        caplog.clear()
        batches = stage_batches(config, front, rank=0, world=1)
        assert len(batches.plan.sources[0]) == 21
        assert {draw.sample for draw in draws_of(batches)} <= set(range(21))
        assert batches.builder.sources[0].number(0) == 3
        assert "3 of 24 samples cannot be used and are left out" in caplog.text
    (listed,) = (tmp_path / "cache" / "lengths").glob("*/quarantine.jsonl")
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["u-0", "u-1", "u-2"]
    assert "unheard_of" in lines[0]["reason"]


def test_too_many_that_cannot_be_rendered_stop_and_stop_again(configured, front, tmp_path):
    sources = f"s: {{set: {unrenderable_set(tmp_path / 'set', 3)}}}"
    for _ in range(2):
        with pytest.raises(ShardError, match=r"3 samples in a row, data\.max_bad_consecutive=3"):
            stage_batches(configured(sources, "data.max_bad_consecutive=3"), front, rank=0, world=1)
    stage_batches(configured(sources), front, rank=0, world=1)
    with pytest.raises(ShardError, match="3 of 24 samples read"):
        stage_batches(configured(sources, "data.max_bad_share=0"), front, rank=0, world=1)


def test_a_changed_weight_is_refused_or_begins_a_segment(configured, front):
    before = stage_batches(configured(BOTH % "", steps=8), front, rank=0, world=1)
    draws_of(before)
    position = before.position(3)
    changed = (BOTH % "").replace("0.25", "0.5")
    refused = stage_batches(configured(changed, steps=8), front, rank=0, world=1)
    with pytest.raises(CheckpointError, match="weight was 1/4, is 1/2"):
        refused.resume(position)
    accepted = stage_batches(configured(changed, "data.accept_change=true", steps=8), front, rank=0, world=1)
    accepted.resume(position)
    assert accepted.start_step == 3
    assert len(accepted.plan.segments) == 2
    assert len(list(accepted.bins())) == 5 * accepted.bins_per_rank
    again = stage_batches(configured(changed, steps=8), front, rank=0, world=1)
    again.resume(accepted.position(5))
    assert [b.samples.tolist() for b in again.bins()] == [
        b.samples.tolist() for b in list(accepted.bins())[2 * accepted.bins_per_rank :]
    ]


def test_skipped_steps_are_left_out_and_move_nothing(configured, front):
    plain = stage_batches(configured(BOTH % "", steps=8), front, rank=0, world=1)
    steps = [
        [b.samples.tolist() for b in step.bins] for step, _ in zip(plain.plan.steps_from(), range(8), strict=False)
    ]
    skipping = stage_batches(configured(BOTH % "", "data.skip_steps=[[2,3]]", steps=4), front, rank=0, world=1)
    got = [b.samples.tolist() for b in skipping.bins()]
    assert got == [b for k in (0, 1, 4, 5) for b in steps[k]]
    resumed = stage_batches(configured(BOTH % "", "data.skip_steps=[[2,3]]", steps=4), front, rank=0, world=1)
    resumed.resume(skipping.position(3))
    assert [b.samples.tolist() for b in resumed.bins()] == steps[5]
