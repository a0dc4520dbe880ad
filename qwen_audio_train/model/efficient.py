"""Qwen2-Audio without the waste, still a plain Hugging Face checkpoint.

``EfficientQwen2Audio`` is the stock class with one more way to be called. Given our batches it runs the encoder at true
length (``true_length.py``), the language model once, and the vocabulary projection only where a label is; it returns
log-probabilities, never a loss (losses are normalised in ``losses/`` alone). Called the stock way it is the stock
model, so ``generate`` and everybody else's code work; weights and config save as the stock class.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2AudioForConditionalGeneration
from transformers.utils import ModelOutput

from qwen_audio_train.model.true_length import encode_clips

STOCK_CLASS_NAME = Qwen2AudioForConditionalGeneration.__name__


@dataclass
class TokenScores(ModelOutput):
    """What a loss or a metric may ask about the labelled positions; zeros elsewhere. All of shape (B, S - 1), fp32."""

    log_probs: torch.Tensor | None = None
    """log p(label | everything before it)."""
    entropy: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    """Bool: the label was the most probable token."""


class EfficientQwen2Audio(Qwen2AudioForConditionalGeneration):
    """Stock Qwen2-Audio plus a path that scores labels from true-length audio.

    The path is taken when ``labels`` come together with ``audio_source`` (every batch of ours has it, also one without
    audio, whose dummy clip keeps all ranks on the same module calls).
    """

    # Trainer must not believe that this forward normalises a loss.
    accepts_loss_kwargs = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.freeze_positions()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not to transformers: weights are named in files as the stock class names them (released layout included)."""
        return False

    def freeze_positions(self) -> None:
        """Keep Whisper's sinusoid table a constant (``from_pretrained`` leaves it trainable)."""
        self.model.audio_tower.embed_positions.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load any stock Qwen2-Audio folder or hub id; the sinusoid table stays frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_positions()
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as the stock class: any stock library loads the folder without this package."""
        super().save_pretrained(save_directory, *args, **kwargs)
        config_path = Path(save_directory) / "config.json"
        if config_path.exists():
            config = json.loads(config_path.read_text(encoding="utf-8"))
            config["architectures"] = [STOCK_CLASS_NAME]
            config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def encoder_fingerprint(self) -> str:
        """Hash of the encoder's weights (hex): whatever was encoded with another one is not this one's."""
        digest = hashlib.blake2b(digest_size=12)
        for name, tensor in sorted(self.model.audio_tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def encode(self, mels_NMF: torch.Tensor, mel_frames_N: torch.Tensor) -> torch.Tensor:
        """Encoder states (N, A, D) before the projector; without autograd when the encoder is frozen."""
        encoder = self.model.audio_tower
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters())
        with torch.set_grad_enabled(learns):
            return encode_clips(encoder, mels_NMF, mel_frames_N)

    def embed(
        self,
        input_ids: torch.Tensor,
        audio_source: torch.Tensor,
        audio_target: torch.Tensor,
        mels: torch.Tensor | None = None,
        mel_frames: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings (B, S, D) with projected audio in its slots.

        Args:
            input_ids: (B, S).
            audio_source: (K,) rows of the flattened (N * A) encoder states, one an audio slot. A clip that several
                rows share (a preference pair) is encoded once and named several times.
            audio_target: (K,) where each goes in the flattened (B * S) rows.
            mels: (N, M, F) true-length log-mels with ``mel_frames`` (N,), or
            audio_states: (N * A, D) encoder states computed before, when the encoder is frozen.
        """
        if audio_states is None:
            assert mels is not None
            assert mel_frames is not None
            audio_states = self.encode(mels, mel_frames).flatten(0, 1)
        projector = self.model.multi_modal_projector
        audio_AD = projector(audio_states.to(projector.linear.weight.dtype))
        embeds_BSD = self.get_input_embeddings()(input_ids)
        rows = embeds_BSD.flatten(0, 1)
        rows = rows.index_copy(0, audio_target, audio_AD.index_select(0, audio_source).to(rows.dtype))
        return rows.view_as(embeds_BSD)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Score labels (our batches) or run the stock forward (everything else)."""
        if "audio_source" in kwargs and kwargs.get("labels") is not None:
            # peft passes the stock arguments along as None.
            return self.score(**{name: value for name, value in kwargs.items() if value is not None})
        return super().forward(*args, **kwargs)

    def score(  # noqa: PLR0913 - the batch's own keys
        self,
        *,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        audio_source: torch.Tensor,
        audio_target: torch.Tensor,
        mels: torch.Tensor | None = None,
        mel_frames: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        fused_lm_head: bool = False,
        use_cache: bool = False,
    ) -> TokenScores:
        """Log-probability of every label given all before it.

        Args:
            labels: (B, S), -100 where nothing is to be scored; the shift by one happens here and nowhere else.
            fused_lm_head: also fill the fields that TRL's metrics read (its own name for this way of calling).
            use_cache: accepted because TRL passes it; scoring never keeps a cache.

        ``embed`` says what the other arguments are.
        """
        embeds_BSD = self.embed(input_ids, audio_source, audio_target, mels, mel_frames, audio_states)
        hidden_BSD = self.model.language_model(
            inputs_embeds=embeds_BSD, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        next_ids = labels[:, 1:]
        labelled = next_ids != -100
        logits_TV = self.lm_head(hidden_BSD[:, :-1][labelled]).float()
        ids_T = next_ids[labelled]
        log_normaliser_T = torch.logsumexp(logits_TV, dim=-1)
        log_probs_T = logits_TV.gather(-1, ids_T[:, None]).squeeze(-1) - log_normaliser_T
        scores = TokenScores(log_probs=_place(log_probs_T, labelled))
        if fused_lm_head:
            with torch.no_grad():
                mean_TV = (logits_TV - log_normaliser_T[:, None]).softmax(-1) * logits_TV
                scores.entropy = _place(log_normaliser_T - mean_TV.sum(-1), labelled)
                scores.mean_logits = _place(logits_TV.mean(-1), labelled)
                scores.is_top1 = _place((logits_TV.argmax(-1) == ids_T), labelled)
        return scores


# generate() checks its arguments against this signature: without it the stock inputs would be refused.
EfficientQwen2Audio.forward.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    Qwen2AudioForConditionalGeneration.forward
)


def _place(values_T: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Put values back at their (B, S - 1) positions; stays differentiable when there are none."""
    return values_T.new_zeros(labelled.shape).masked_scatter(labelled, values_T)
