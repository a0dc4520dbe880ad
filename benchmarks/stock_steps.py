"""A training step as it is otherwise run: stock transformers, every clip padded to 30 s, a padded row for every answer.

What ms-swift and LLaMA-Factory do for Qwen2-Audio, and what TRL does for models that see: samples in random order; for
preferences, chosen rows and then rejected rows, each with its prompt and its own copy of the clip, in the policy and
again in the reference: the encoder runs four times for a pair. Logits at every position; the model's own loss, or a
log-softmax over all logits in fp32 and a gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from benchmarks.speech_mixes import Sample
from qwen_audio_train.audio import lengths
from qwen_audio_train.samples import IntArray

BETA = 0.1
IGNORE = -100
Batch = dict[str, torch.Tensor]


def stock_batches(
    samples: Sequence[Sample], samples_per_batch: int, *, pairs: bool, device: torch.device, dtype: torch.dtype
) -> list[Batch]:
    """The samples in the order given, so many at once; as pairs, twice as many rows."""
    starts = range(0, len(samples), samples_per_batch)
    chosen = [samples[start : start + samples_per_batch] for start in starts]
    return [_placed(_batch(part, pairs=pairs), device, dtype) for part in chosen]


def _batch(samples: Sequence[Sample], *, pairs: bool) -> Batch:
    prompts = [sample.pair.prompt.input_ids for sample in samples]
    answers = [sample.pair.chosen_ids for sample in samples]
    clips = [sample.clip for sample in samples]
    if pairs:
        prompts, clips = prompts * 2, clips * 2
        answers += [sample.pair.rejected_ids for sample in samples]
    features = np.zeros((len(clips), clips[0].mel_MF.shape[0], lengths.MAX_MEL_FRAMES), np.float32)
    is_clip = np.zeros((len(clips), lengths.MAX_MEL_FRAMES), np.int64)
    for row, clip in enumerate(clips):
        features[row, :, : clip.mel_MF.shape[1]] = clip.mel_MF
        is_clip[row, : clip.mel_frames] = 1
    arrays = {**_rows(prompts, answers), "input_features": features, "feature_attention_mask": is_clip}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _rows(prompts: Sequence[IntArray], answers: Sequence[IntArray]) -> dict[str, np.ndarray]:
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    input_ids = np.zeros((len(prompts), longest), np.int64)
    attention_mask = np.zeros_like(input_ids)
    labels = np.full_like(input_ids, IGNORE)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        input_ids[row, :end] = np.concatenate([prompt, answer])
        attention_mask[row, :end] = 1
        labels[row, len(prompt) : end] = answer
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _placed(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in batch.items()}


def stock_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The model's own mean over the batch's supervised tokens."""
    loss: torch.Tensor = model(**batch, use_cache=False).loss
    return loss


def stock_pair_scores(model: Any, batch: Batch) -> torch.Tensor:
    """Sums of log-probabilities of the answers, shape (2 P,): all chosen, then all rejected."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return (log_probs * (labels != IGNORE)).sum(1)


def stock_pair_loss(policy: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Sigmoid DPO loss, mean over the batch's pairs."""
    scores = stock_pair_scores(policy, batch)
    with torch.no_grad():
        reference_scores = stock_pair_scores(reference, batch)
    return preference_loss(scores - reference_scores)


def preference_loss(log_ratios: torch.Tensor) -> torch.Tensor:
    """Of log-ratios (2 P,), chosen and then rejected; mean over pairs."""
    chosen, rejected = log_ratios.chunk(2)
    return -logsigmoid(BETA * (chosen - rejected)).mean()
