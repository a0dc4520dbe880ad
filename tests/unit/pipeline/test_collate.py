"""Rows, prompts and pairs as tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen_audio_train.pipeline.collate import Collator, silent_clip, silent_states, stack_mels
from qwen_audio_train.samples import ClipFeatures, EncodedClip, Rendered, RenderedPair

PAD, AUDIO = 0, 9
MEL = Collator(PAD, AUDIO, silent_clip(4))
STATES = Collator(PAD, AUDIO, silent_states(3))


def rendered(ids: list[int], supervised: str) -> Rendered:
    """``supervised`` has an x where a token is a target."""
    spans, run = [], 0
    for token in [*ids, -1]:
        if token == AUDIO:
            run += 1
        elif run:
            spans.append(run)
            run = 0
    return Rendered(np.array(ids, np.int32), np.array([c == "x" for c in supervised]), tuple(spans))


def mel(num_frames: int, value: float = 1.0) -> ClipFeatures:
    return ClipFeatures(np.full((4, num_frames), value, np.float32), num_frames - 2)


ONE = rendered([5, AUDIO, AUDIO, 6, 7], "...xx")
TWO = rendered([AUDIO, 5, AUDIO, AUDIO, AUDIO, 6, 8], "......x")
TEXT = rendered([1, 2, 3], ".xx")


def test_rows_are_padded_on_the_right_with_labels_where_supervised():
    batch = MEL.rows([ONE, TEXT], [[mel(10)], []])
    assert batch["input_ids"].tolist() == [[5, AUDIO, AUDIO, 6, 7], [1, 2, 3, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 6, 7], [-100, 2, 3, -100, -100]]
    assert {name: tensor.dtype for name, tensor in batch.items() if name != "mels"} == dict.fromkeys(
        ["input_ids", "attention_mask", "labels", "audio_source", "audio_target", "mel_frames"], torch.int64
    )


def test_mels_are_stacked_with_zeros_behind_and_sources_count_padded_clips():
    batch = MEL.rows([TWO, ONE], [[mel(5), mel(14)], [mel(9)]])
    assert batch["mels"].shape == (3, 4, 14)
    assert batch["mel_frames"].tolist() == [3, 12, 7]
    assert batch["mels"][0, :, 5:].eq(0).all()
    assert batch["mels"][0, :, :5].eq(1).all()
    # 14 mel frames are 7 encoder frames, 3 tokens for each clip: clips start at rows 0, 3 and 6.
    assert batch["audio_source"].tolist() == [0, 3, 4, 5, 6, 7]
    assert batch["audio_target"].tolist() == [0, 2, 3, 4, 8, 9]


def test_encoded_clips_are_laid_end_to_end():
    clips = [EncodedClip(np.full((n, 3), n, np.float32)) for n in (1, 3, 2)]
    batch = STATES.rows([TWO, ONE], [clips[:2], clips[2:]])
    assert batch["audio_states"][:, 0].tolist() == [1, 3, 3, 3, 2, 2]
    assert batch["audio_source"].tolist() == [0, 1, 2, 3, 4, 5]
    assert "mels" not in batch


def test_prompts_are_padded_on_the_left_without_labels():
    batch = MEL.prompts([ONE, TEXT], [[mel(10)], []])
    assert batch["input_ids"].tolist() == [[5, AUDIO, AUDIO, 6, 7], [PAD, PAD, 1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert "labels" not in batch
    shifted = MEL.prompts([TEXT, ONE, rendered([AUDIO, 1], "..")], [[], [mel(10)], [mel(6)]])
    assert shifted["audio_target"].tolist() == [6, 7, 13]


def test_pairs_are_all_chosen_then_all_rejected_and_name_each_clip_twice():
    prompts = [rendered([5, AUDIO, AUDIO], "..."), rendered([4], "."), rendered([AUDIO], ".")]
    pairs = [
        RenderedPair(prompts[0], np.array([11, 12], np.int32), np.array([13], np.int32)),
        RenderedPair(prompts[1], np.array([14], np.int32), np.array([15, 16, 17], np.int32)),
        RenderedPair(prompts[2], np.array([18], np.int32), np.array([19], np.int32)),
    ]
    batch = MEL.pairs(pairs, [[mel(10)], [], [mel(6)]])
    assert batch["input_ids"].tolist() == [
        [5, AUDIO, AUDIO, 11, 12], [4, 14, 0, 0, 0], [AUDIO, 18, 0, 0, 0],
        [5, AUDIO, AUDIO, 13, 0], [4, 15, 16, 17, 0], [AUDIO, 19, 0, 0, 0],
    ]  # fmt: skip
    assert batch["completion_mask"].tolist() == [
        [0, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0], [0, 1, 1, 1, 0], [0, 1, 0, 0, 0],
    ]  # fmt: skip
    assert len(batch["mels"]) == 2, "a pair's audio is there once"
    assert batch["audio_source"].tolist() == [0, 1, 2, 0, 1, 2]
    assert batch["audio_target"].tolist() == [1, 2, 10, 16, 17, 25]
    assert "labels" not in batch


@pytest.mark.parametrize(("collator", "audio"), [(MEL, "mels"), (STATES, "audio_states")])
def test_an_empty_bin_is_a_batch_that_asks_for_nothing_but_has_audio_to_encode(collator, audio):
    rows, pairs = collator.rows([], []), collator.pairs([], [])
    assert rows["labels"].eq(-100).all()
    assert rows["attention_mask"].any()
    assert not pairs["completion_mask"].any()
    assert len(pairs["input_ids"]) == 2
    for batch in (rows, pairs):
        assert len(batch[audio]) >= 1
        assert len(batch["audio_source"]) == len(batch["audio_target"]) == 0


def test_a_batch_without_audio_gets_a_silent_clip():
    batch = MEL.rows([TEXT], [[]])
    assert batch["mels"].eq(0).all()
    assert batch["mel_frames"].tolist() == [3]
    assert batch["audio_source"].tolist() == []


@pytest.mark.parametrize(
    ("renders", "clips"),
    [
        ([ONE], [[]]),
        ([ONE], [[mel(10), mel(10)]]),
        ([TEXT], [[mel(10)]]),
        ([Rendered(ONE.input_ids, ONE.supervised, (3,))], [[mel(10)]]),
    ],
)
def test_samples_and_clips_that_do_not_belong_together_are_refused(renders, clips):
    with pytest.raises(ValueError, match="do not belong together"):
        MEL.rows(renders, clips)


def test_stacking_one_clip_adds_nothing():
    mels, frames = stack_mels([mel(7)])
    assert mels.shape == (1, 4, 7)
    assert frames.tolist() == [5]
