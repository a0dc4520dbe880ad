"""Qwen2-Audio without the waste, still a plain Hugging Face checkpoint.

``EfficientQwen2Audio`` is the stock class with one more way to be called. Given our batches it runs the encoder at true
length (``true_length.py``), the language model once, over packed rows (``span_attention.py``), and the vocabulary
projection only where a label is (``label_scores.py``); it returns log-probabilities, never a loss (losses are
normalised in ``losses/`` alone). Called the stock way it is the stock model, so ``generate`` and everybody else's code
work; weights and config save as the stock class.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2AudioForConditionalGeneration
from transformers.utils import ModelOutput

from qwen_audio_train.audio.pack_clips import pack_clips
from qwen_audio_train.config.model import AttentionKernel
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model.label_scores import score_labels
from qwen_audio_train.model.span_attention import SPANS, PackedRow, choose_kernel
from qwen_audio_train.model.true_length import encode_clips
from qwen_audio_train.samples import AttentionSpans, ClipFeatures, FloatArray

STOCK_CLASS_NAME = Qwen2AudioForConditionalGeneration.__name__
CLIP_KEYS = ("mels", "mel_is_clip", "frame_source", "frame_position", "pool_source", "clip_spans")
"""Of a batch's rows: what ``encode`` takes."""


@dataclass
class TokenScores(ModelOutput):
    """What a loss or a metric may ask about the labels, fp32: of shape (L,), one a label; or, where the caller says by
    ``labels`` (B, S) how it lays them out, of shape (B, S - 1) with zeros elsewhere."""

    log_probs: torch.Tensor | None = None
    """log p(label | everything before it)."""
    entropy: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    """Bool: the label was the most probable token."""


class EfficientQwen2Audio(Qwen2AudioForConditionalGeneration):
    """Stock Qwen2-Audio plus a path that scores the labels of a batch of ours.

    The path is taken when ``rows`` are given. Every batch of ours has them; one without audio brings a dummy clip that
    keeps all ranks on the same module calls.
    """

    # Trainer must not believe that this forward normalises a loss.
    accepts_loss_kwargs = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # Stock sdpa unless a packed row is given, for encoder and language model alike.
        self.config._attn_implementation = SPANS
        self.attention_kernel = AttentionKernel.auto
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

    def encode(
        self,
        mels: torch.Tensor,
        mel_is_clip: torch.Tensor,
        frame_source: torch.Tensor,
        frame_position: torch.Tensor,
        pool_source: torch.Tensor,
        clip_spans: AttentionSpans,
    ) -> torch.Tensor:
        """Encoder states (A, D) before the projector, clip after clip; without autograd when the encoder is frozen.

        ``audio/pack_clips.py`` makes the arguments, ``model/true_length.py`` says what they are.
        """
        encoder = self.model.audio_tower
        learns = torch.is_grad_enabled() and self.encoder_learns
        with torch.set_grad_enabled(learns):
            row = self._packed_row(clip_spans, mels.device, encoder.conv1.weight.dtype)
            return encode_clips(encoder, mels, mel_is_clip, frame_source, frame_position, pool_source, row)

    def encode_mels(self, mels_MF: Sequence[FloatArray], mel_frames: Sequence[int]) -> torch.Tensor:
        """Encoder states (A, D) of log-mels as ``audio/features.py`` makes them, clip after clip.

        Args:
            mel_frames: valid frames of each, without the context behind them.
        """
        packed = pack_clips([ClipFeatures(mel, frames) for mel, frames in zip(mels_MF, mel_frames, strict=True)])
        spans = packed.pop("clip_spans")
        return self.encode(**{name: tensor.to(self.device) for name, tensor in packed.items()}, clip_spans=spans)

    @property
    def encoder_learns(self) -> bool:
        """Whether anything of the encoder trains, adapters included."""
        return any(p.requires_grad for p in self.model.audio_tower.parameters())

    def embed(
        self,
        input_ids: torch.Tensor,
        audio_source: torch.Tensor,
        audio_target: torch.Tensor,
        audio_states: torch.Tensor | None = None,
        **clips: Any,
    ) -> torch.Tensor:
        """Token embeddings (B, S, D) with projected audio in its slots.

        Args:
            input_ids: (B, S).
            audio_source: (K,) rows of the encoder states (A, D), one an audio slot. A clip that several rows share is
                encoded once and named several times.
            audio_target: (K,) where each goes in the flattened (B * S) rows.
            audio_states: (A, D) encoder states computed before, when the encoder is frozen, or
            clips: the arguments of ``encode``.
        """
        if audio_states is None:
            audio_states = self.encode(**clips)
        projector = self.model.multi_modal_projector
        audio_AD = projector(audio_states.to(projector.linear.weight.dtype))
        embeds_BSD = self.get_input_embeddings()(input_ids)
        rows = embeds_BSD.flatten(0, 1)
        rows = rows.index_copy(0, audio_target, audio_AD.index_select(0, audio_source).to(rows.dtype))
        return rows.view_as(embeds_BSD)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Score labels (our batches) or run the stock forward (everything else)."""
        if kwargs.get("rows") is not None:
            return self.score(
                kwargs["rows"], labels=kwargs.get("labels"), fused_lm_head=kwargs.get("fused_lm_head", False)
            )
        kwargs.pop("rows", None)
        return super().forward(*args, **kwargs)

    def score(
        self, rows: Mapping[str, Any], *, labels: torch.Tensor | None = None, fused_lm_head: bool = False
    ) -> TokenScores:
        """Log-probability of every label given all before it.

        Args:
            rows: of a batch (``pipeline/collate.py``).
            labels: (B, S) whose positions from the second on the scores are laid out at, by the batch's
                ``label_places``; the labels themselves are the batch's.
            fused_lm_head: also fill the fields that TRL's metrics read (its own name for this way of calling).
        """
        audio = {name: rows[name] for name in ("audio_states", *CLIP_KEYS) if name in rows}
        embeds_BSD = self.embed(rows["input_ids"], rows["audio_source"], rows["audio_target"], **audio)
        hidden_RD = self._hidden(embeds_BSD, rows).flatten(0, 1)
        scores = score_labels(
            self.lm_head,
            hidden_RD.index_select(0, rows["predict_from"]),
            rows["label_ids"],
            vocabulary=self.config.text_config.vocab_size,
            details=fused_lm_head,
        )
        if labels is not None:
            shape = labels[:, 1:].shape
            scores = tuple(_place(values, rows["label_places"], shape) for values in scores)
        return TokenScores(*scores)

    def _hidden(self, embeds_BSD: torch.Tensor, rows: Mapping[str, Any]) -> torch.Tensor:
        """Last hidden states (B, S, D)."""
        if "spans" not in rows:
            hidden: torch.Tensor = self.model.language_model(
                inputs_embeds=embeds_BSD, attention_mask=rows["attention_mask"], use_cache=False
            ).last_hidden_state
            return hidden
        row = self._packed_row(rows["spans"], embeds_BSD.device, embeds_BSD.dtype)
        hidden = self.model.language_model(
            inputs_embeds=embeds_BSD,
            # Spans say who sees whom. A mask of four dimensions is taken as made: none is built beside them.
            attention_mask=embeds_BSD.new_zeros(1, 1, 1, 1),
            position_ids=rows["position_ids"],
            use_cache=False,
            spans=row,
        ).last_hidden_state
        if not row.num_uses:
            name = type(self.model.language_model).__name__
            raise ConfigError(f"{name} does not hand spans to its attention: set batching.layout=padded")
        return hidden

    def _packed_row(self, spans: AttentionSpans, device: torch.device, dtype: torch.dtype) -> PackedRow:
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return PackedRow(spans, choose_kernel(self.attention_kernel, device, dtype), device)


def own_model(model: torch.nn.Module) -> EfficientQwen2Audio:
    """Our class, out of whatever is wrapped around it (an adapter, a data-parallel wrapper)."""
    return next(module for module in model.modules() if isinstance(module, EfficientQwen2Audio))


# generate() checks its arguments against this signature: without it the stock inputs would be refused.
EfficientQwen2Audio.forward.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    Qwen2AudioForConditionalGeneration.forward
)


def _place(values_L: torch.Tensor, places_L: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Values at their places, zeros elsewhere; stays differentiable when there are none."""
    return values_L.new_zeros(shape.numel()).index_copy(0, places_L, values_L).view(shape)
