"""Lengths are what rendering gives, kept on disk under everything they depend on."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_audio_train.audio.lengths import encoder_frames, mel_frames
from qwen_audio_train.model.load import load_processor
from qwen_audio_train.pipeline import measure as module
from qwen_audio_train.pipeline.measure import Selection, measure
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.samples import RenderedPair
from qwen_audio_train.shards.reader import ShardSet
from tests import sets


@pytest.fixture(scope="module")
def tokenizer(workshop):
    return load_processor(str(workshop.folder / "model")).tokenizer


def lengths_of(folder, tokenizer, cache_dir, num_wordings=1):
    shards = ShardSet.open(folder)
    renderer = Renderer(tokenizer)
    selection = Selection(num_wordings=num_wordings)
    measured = measure(shards, renderer, tokenizer, selection=selection, cache_dir=cache_dir, shows_progress=False)
    return measured.lengths


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_lengths_are_those_of_the_rendered_samples(workshop, tokenizer, tmp_path, stage, monkeypatch):
    monkeypatch.setattr(module, "RECORDS_AT_ONCE", 10)  # does not divide the 24 samples
    lengths = lengths_of(workshop.folder / stage, tokenizer, tmp_path)
    shards, renderer = ShardSet.open(workshop.folder / stage), Renderer(tokenizer)
    assert len(lengths) == len(shards) == 24
    for i in range(len(shards)):
        record = shards.record(i)
        rendered = renderer.render_many([record])[0]
        if isinstance(rendered, RenderedPair):
            answers = [len(rendered.chosen_ids), len(rendered.rejected_ids)]
            expected = len(rendered.prompt.input_ids) + sum(answers), sum(answers)
        else:
            expected = len(rendered.input_ids), int(rendered.supervised.sum())
        assert (lengths.llm_tokens[i], lengths.supervised_tokens[i]) == expected
        assert lengths.encoder_frames[i] == sum(encoder_frames(mel_frames(c.num_samples)) for c in record.clips)


def test_a_pair_with_a_prompt_for_each_answer_takes_two_rows(workshop, tokenizer, tmp_path):
    shards, renderer = ShardSet.open(workshop.folder / "dpo"), Renderer(tokenizer)
    options = {"cache_dir": tmp_path, "shows_progress": False}
    shared = measure(shards, renderer, tokenizer, **options)
    apart = measure(shards, renderer, tokenizer, shares_prompts=False, **options)
    assert shared.fingerprint != apart.fingerprint
    for i in range(len(shards)):
        rendered = renderer.render_many([shards.record(i)])[0]
        longer = max(len(rendered.chosen_ids), len(rendered.rejected_ids))
        assert apart.lengths.llm_tokens[i] == 2 * (len(rendered.prompt.input_ids) + longer)


def test_several_wordings_count_the_longest(workshop, tokenizer, tmp_path):
    official = lengths_of(workshop.folder / "pretrain", tokenizer, tmp_path)
    longest = lengths_of(workshop.folder / "pretrain", tokenizer, tmp_path, num_wordings=4)
    assert (longest.llm_tokens >= official.llm_tokens).all()
    assert (longest.llm_tokens > official.llm_tokens).any()
    assert np.array_equal(longest.supervised_tokens, official.supervised_tokens)


def test_a_second_call_reads_what_the_first_kept(workshop, tokenizer, tmp_path, monkeypatch):
    first = lengths_of(workshop.folder / "sft", tokenizer, tmp_path)
    monkeypatch.setattr(Renderer, "render_many", lambda *args: pytest.fail("measured again"))
    second = lengths_of(workshop.folder / "sft", tokenizer, tmp_path)
    assert np.array_equal(first.llm_tokens, second.llm_tokens)
    (kept,) = (tmp_path / "lengths").iterdir()
    assert not kept.name.startswith("."), "nothing half-written stays"
    assert {path.name for path in kept.iterdir()} == {"lengths.npy", "facts.json"}


def test_another_set_wording_count_tokenizer_or_rule_is_measured_anew(workshop, tokenizer, tmp_path, monkeypatch):
    def kept() -> int:
        return len(list((tmp_path / "lengths").iterdir()))

    lengths_of(workshop.folder / "pretrain", tokenizer, tmp_path)
    lengths_of(workshop.folder / "pretrain", tokenizer, tmp_path, num_wordings=2)
    assert kept() == 2
    lengths_of(sets.pretrain_set(tmp_path / "pretrain", num_samples=5), tokenizer, tmp_path)
    assert kept() == 3
    other = load_processor(str(workshop.folder / "model")).tokenizer
    other.add_tokens(["again"])
    lengths_of(workshop.folder / "pretrain", other, tmp_path)
    assert kept() == 4
    monkeypatch.setattr(module, "RULES_VERSION", module.RULES_VERSION + 1)
    lengths_of(workshop.folder / "pretrain", tokenizer, tmp_path)
    assert kept() == 5
