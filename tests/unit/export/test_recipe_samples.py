"""The samples that recipes/export.py reads are prompts that the stock processor gives the same ids for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.errors import ExportError
from qwen_audio_train.export.answers import prompt_text
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.shards.reader import ShardSet
from tests.toy_tokenizer import toy_processor, toy_tokenizer
from tests.unit.shards.conftest import write_toy_set

RECIPE = Path(__file__).parents[3] / "recipes" / "export.py"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("export_recipe", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    shards = ShardSet.open(write_toy_set(tmp_path_factory.mktemp("set") / "toy"))
    renderer, log_mel = Renderer(toy_tokenizer()), LogMel(80)
    return [recipe.verification_sample(shards, i, renderer, log_mel) for i in range(len(shards))]


def test_prompts_of_all_payloads_survive_the_stock_processor(samples):
    texts = [prompt_text(toy_processor(), sample) for sample in samples]
    assert [text.count("<|AUDIO|>") for text in texts] == [1, 1, 1, 1, 2, 1]
    assert texts[4].endswith("<|im_start|>assistant\n")
    assert "Two clips." not in texts[4]
    assert [len(sample.waveforms) for sample in samples] == [len(sample.mels) for sample in samples]


def test_ids_that_the_processor_would_not_give_are_refused(samples):
    sample = samples[0]
    ids = sample.input_ids.copy()
    audio = np.flatnonzero(ids == toy_tokenizer().convert_tokens_to_ids("<|AUDIO|>"))
    for changed in (np.delete(ids, audio[0]), np.insert(ids, audio[0], ids[audio[0]])):
        object.__setattr__(sample, "input_ids", changed)
        with pytest.raises(ExportError, match="clip_0"):
            prompt_text(toy_processor(), sample)
    object.__setattr__(sample, "input_ids", ids)
