"""What a model says to the verification samples: the trained model here, the exported one in its fresh process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel

from qwen_audio_train.errors import ExportError
from qwen_audio_train.model.efficient import EfficientQwen2Audio

NUM_POSITIONS = 8
"""Logits are compared at this many last positions of a prompt."""
MAX_NEW_TOKENS = 32
SAMPLING_RATE_HZ = 16_000

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class VerificationSample:
    """A prompt with its clips, as training and evaluation see it."""

    name: str
    """For error messages."""
    input_ids: IntArray
    """Shape (S,), every clip expanded to its audio tokens; ends where generation starts."""
    waveforms: tuple[FloatArray, ...]
    """16 kHz, one a clip: what the stock processor gets."""
    mels: tuple[FloatArray, ...]
    """True-length log-mels (M, F), one a clip: what our own path gets."""
    mel_frames: tuple[int, ...]
    """Valid frames of each."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to one sample."""

    logits: FloatArray
    """Shape (N, V): the last N positions of the prompt."""
    generated_ids: tuple[int, ...]


def prompt_text(processor: Any, sample: VerificationSample) -> str:
    """The sample as a user would write it: one audio token a clip.

    Raises:
        ExportError: the processor does not turn the text back into the ids that training saw.
    """
    audio_id = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    ids: list[int] = []
    for token, run in groupby(sample.input_ids.tolist()):
        ids += [token] if token == audio_id else list(run)
    text: str = processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    found = stock_inputs(processor, text, sample.waveforms)["input_ids"][0].tolist()
    if found != sample.input_ids.tolist():
        raise ExportError(
            f"{sample.name}: the processor gives {len(found)} ids for its prompt where training saw "
            f"{len(sample.input_ids)}, or other ones; export the processor that the stage was trained with, or choose "
            "other samples (export.verify_set)"
        )
    return text


def stock_inputs(processor: Any, text: str, waveforms: Sequence[FloatArray]) -> Any:
    """The stock processor's batch of one, its mels padded to 30 s."""
    audio = {"audio": list(waveforms), "sampling_rate": SAMPLING_RATE_HZ} if waveforms else {}
    return processor(text=[text], return_tensors="pt", **audio)


@torch.no_grad()
def answer_padded(model: Any, processor: Any, text: str, sample: VerificationSample) -> Answer:
    """By the stock forward over 30 s of padding."""
    inputs = stock_inputs(processor, text, sample.waveforms).to(model.device)
    logits = model(**inputs, use_cache=False).logits[0, -NUM_POSITIONS:]
    generated = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS)
    return _answer(logits, generated[0, inputs["input_ids"].shape[1] :])


@torch.no_grad()
def answer_true_length(model: Any, sample: VerificationSample) -> Answer:
    """By the path that trained: true-length mels, embedded by ``EfficientQwen2Audio.embed``."""
    efficient: EfficientQwen2Audio = model.get_base_model() if isinstance(model, PeftModel) else model
    device = efficient.device
    input_ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None].to(device)
    embeds = _embed(efficient, sample, input_ids)
    mask = torch.ones_like(input_ids)
    hidden = efficient.model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    logits = efficient.lm_head(hidden.last_hidden_state[0, -NUM_POSITIONS:])
    generated = efficient.generate(
        inputs_embeds=embeds, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS
    )
    return _answer(logits, generated[0])


def _embed(efficient: EfficientQwen2Audio, sample: VerificationSample, input_ids: torch.Tensor) -> torch.Tensor:
    if not sample.mels:
        embeds: torch.Tensor = efficient.get_input_embeddings()(input_ids)
        return embeds
    target = (input_ids.flatten() == efficient.config.audio_token_index).nonzero().flatten()
    source = torch.arange(len(target), device=input_ids.device)
    states_AD = efficient.encode_mels(sample.mels, sample.mel_frames)
    return efficient.embed(input_ids, source, target, audio_states=states_AD)


def _answer(logits: torch.Tensor, generated: torch.Tensor) -> Answer:
    return Answer(logits.float().cpu().numpy(), tuple(generated.tolist()))
