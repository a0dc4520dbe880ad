"""Rows, prompts and pairs as tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen_audio_train.pipeline.collate import Collator, silent_clip, silent_states, to_device
from qwen_audio_train.samples import AttentionSpans, BatchSizes, ClipFeatures, EncodedClip, Rendered, RenderedPair

PAD, AUDIO = 0, 9
PACKED = Collator(PAD, AUDIO, silent_clip(4), "packed")
PADDED = Collator(PAD, AUDIO, silent_clip(4), "padded")
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


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


ONE = rendered([5, AUDIO, AUDIO, 6, 7], "...xx")
TWO = rendered([AUDIO, 5, AUDIO, AUDIO, AUDIO, 6, 8], "......x")
TEXT = rendered([1, 2, 3], ".xx")
PROMPTS = [rendered([5, AUDIO, AUDIO], "..."), rendered([4], "."), rendered([AUDIO], ".")]
PAIRS = [
    RenderedPair(PROMPTS[0], ids(11, 12), ids(13)),
    RenderedPair(PROMPTS[1], ids(14), ids(15, 16, 17)),
    RenderedPair(PROMPTS[2], ids(18), ids(19)),
]
CLIPS = [[mel(10)], [], [mel(6)]]
TRL_IDS = [[0, 11, 12, 0], [0, 14, 0, 0], [0, 18, 0, 0], [0, 13, 0, 0], [0, 15, 16, 17], [0, 19, 0, 0]]


def predicted(rows: dict) -> list[tuple[int, int]]:
    """(the token that predicts, the label), one a label."""
    tokens = rows["input_ids"].flatten()
    return list(zip(tokens[rows["predict_from"]].tolist(), rows["label_ids"].tolist(), strict=True))


def test_packed_rows_lie_end_to_end_with_positions_that_begin_anew():
    batch, sizes = PACKED.rows([ONE, TEXT], [[mel(10)], []])
    rows = batch["rows"]
    assert rows["input_ids"].tolist() == [[5, AUDIO, AUDIO, 6, 7, 1, 2, 3]]
    assert rows["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert rows["spans"] == AttentionSpans((5, 3))
    assert rows["predict_from"].tolist() == [2, 3, 5, 6]
    assert predicted(rows) == [(AUDIO, 6), (6, 7), (1, 2), (2, 3)]
    assert "attention_mask" not in rows
    assert (sizes.llm_tokens, sizes.llm_positions, sizes.supervised_tokens, sizes.audio_tokens) == (8, 8, 4, 2)
    assert sizes.llm_attended == 15 + 6


def test_padded_rows_are_padded_on_the_right():
    batch, sizes = PADDED.rows([ONE, TEXT], [[mel(10)], []])
    rows = batch["rows"]
    assert rows["input_ids"].tolist() == [[5, AUDIO, AUDIO, 6, 7], [1, 2, 3, PAD, PAD]]
    assert rows["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert predicted(rows) == [(AUDIO, 6), (6, 7), (1, 2), (2, 3)]
    assert "spans" not in rows
    assert (sizes.llm_tokens, sizes.llm_positions) == (8, 10)


def test_a_first_token_is_never_a_label():
    batch, _ = PACKED.rows([TEXT, rendered([1, 2], "xx")], [[], []])
    assert predicted(batch["rows"]) == [(1, 2), (2, 3), (1, 2)]


@pytest.mark.parametrize(("collator", "targets"), [(PACKED, [0, 2, 3, 4, 8, 9]), (PADDED, [0, 2, 3, 4, 8, 9])])
def test_audio_goes_from_states_clip_after_clip_to_the_slots(collator, targets):
    # 3, 12 and 7 mel frames are 2, 6 and 4 encoder frames, and 1, 3 and 2 tokens.
    batch, sizes = collator.rows([TWO, ONE], [[mel(5), mel(14)], [mel(9)]])
    assert batch["rows"]["audio_source"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["rows"]["audio_target"].tolist() == targets
    assert batch["rows"]["clip_spans"] == AttentionSpans((2, 6, 4))
    assert (sizes.encoder_frames, sizes.encoder_attended) == (12, 4 + 36 + 16)


def test_encoded_clips_are_laid_end_to_end():
    clips = [EncodedClip(np.full((n, 3), n, np.float32)) for n in (1, 3, 2)]
    batch, sizes = STATES.rows([TWO, ONE], [clips[:2], clips[2:]])
    rows = batch["rows"]
    assert rows["audio_states"][:, 0].tolist() == [1, 3, 3, 3, 2, 2]
    assert rows["audio_source"].tolist() == [0, 1, 2, 3, 4, 5]
    assert rows["audio_target"].tolist() == [0, 2, 3, 4, 8, 9]
    assert "mels" not in rows
    assert (sizes.encoder_frames, sizes.audio_tokens) == (0, 6)


def test_prompts_are_padded_on_the_left_without_labels():
    batch = PACKED.prompts([ONE, TEXT], [[mel(10)], []])
    assert batch["input_ids"].tolist() == [[5, AUDIO, AUDIO, 6, 7], [PAD, PAD, 1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert "label_ids" not in batch
    shifted = PACKED.prompts([TEXT, ONE, rendered([AUDIO, 1], "..")], [[], [mel(10)], [mel(6)]])
    assert shifted["audio_target"].tolist() == [6, 7, 13]


def test_packed_pairs_have_their_prompt_once_and_both_answers_behind_it():
    batch, sizes = PACKED.pairs(PAIRS, CLIPS)
    rows = batch["rows"]
    assert rows["input_ids"].tolist() == [[5, AUDIO, AUDIO, 11, 12, 13, 4, 14, 15, 16, 17, AUDIO, 18, 19]]
    assert rows["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 1, 2, 3, 0, 1, 1]]
    assert rows["spans"] == AttentionSpans((5, 1, 2, 3, 2, 1), (0, 0, 0, 6, 0, 11), (0, 3, 0, 1, 0, 1))
    assert predicted(rows) == [
        (AUDIO, 11), (11, 12), (AUDIO, 13), (4, 14), (4, 15), (15, 16), (16, 17), (AUDIO, 18), (AUDIO, 19),
    ]  # fmt: skip
    assert rows["audio_source"].tolist() == [0, 1, 2], "a pair's audio is there once"
    assert rows["audio_target"].tolist() == [1, 2, 11]
    # 15 and 1 * (3 + 1), 3 and 3 * 1 + 6, 3 and 1 + 1.
    assert sizes.llm_attended == 15 + 4 + 3 + 9 + 3 + 2


def test_padded_pairs_have_a_row_for_each_answer_and_name_each_clip_twice():
    rows = PADDED.pairs(PAIRS, CLIPS)[0]["rows"]
    assert rows["input_ids"].tolist() == [
        [5, AUDIO, AUDIO, 11, 12], [4, 14, 0, 0, 0], [AUDIO, 18, 0, 0, 0],
        [5, AUDIO, AUDIO, 13, 0], [4, 15, 16, 17, 0], [AUDIO, 19, 0, 0, 0],
    ]  # fmt: skip
    assert rows["audio_source"].tolist() == [0, 1, 2, 0, 1, 2]
    assert rows["audio_target"].tolist() == [1, 2, 10, 16, 17, 25]


@pytest.mark.parametrize("collator", [PACKED, PADDED])
def test_trl_sees_the_answers_all_chosen_then_all_rejected(collator):
    batch, sizes = collator.pairs(PAIRS, CLIPS)
    assert batch["input_ids"].tolist() == TRL_IDS
    assert batch["completion_mask"].tolist() == [[int(token > 0) for token in row] for row in TRL_IDS]
    assert batch["attention_mask"].tolist() == [[1, *(int(token > 0) for token in row[1:])] for row in TRL_IDS]
    placed = torch.zeros(6 * 3, dtype=torch.long)
    placed[batch["rows"]["label_places"]] = batch["rows"]["label_ids"]
    assert placed.view(6, 3).tolist() == [row[1:] for row in TRL_IDS]
    assert sizes.supervised_tokens == 9


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("dummy", "audio"), [(silent_clip(4), "mels"), (silent_states(3), "audio_states")])
def test_an_empty_bin_is_a_batch_that_asks_for_nothing_but_has_audio_to_encode(layout, dummy, audio):
    collator = Collator(PAD, AUDIO, dummy, layout)
    rows, pairs = collator.rows([], [])[0], collator.pairs([], [])[0]
    assert pairs["input_ids"].shape == (2, 2)
    assert not pairs["completion_mask"].any()
    for batch in (rows["rows"], pairs["rows"]):
        assert len(batch["label_ids"]) == len(batch["predict_from"]) == 0
        assert batch["input_ids"].numel() >= 2
        assert len(batch[audio]) >= 1
        assert len(batch["audio_source"]) == len(batch["audio_target"]) == 0


def test_a_batch_without_audio_gets_a_silent_clip():
    rows = PACKED.rows([TEXT], [[]])[0]["rows"]
    assert rows["mels"].eq(0).all()
    assert rows["clip_spans"] == AttentionSpans((2,))
    assert rows["audio_source"].tolist() == []


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
        PACKED.rows(renders, clips)


def test_tensors_move_and_numbers_stay():
    moved = to_device(PACKED.pairs(PAIRS, CLIPS)[0], torch.device("meta"))
    assert moved["input_ids"].is_meta
    assert moved["rows"]["mels"].is_meta
    assert isinstance(moved["rows"]["spans"], AttentionSpans)


def test_sizes_add_up():
    one, two = BatchSizes(1, 2, 3, 4, 5, 6, 7, 8), BatchSizes(supervised_tokens=10, audio_tokens=1)
    assert one + two == BatchSizes(11, 2, 3, 4, 5, 6, 7, 9)
