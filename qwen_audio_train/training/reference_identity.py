"""What stored reference log-probabilities depend on: if any of it changes, they are computed again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from qwen_audio_train.config.model import ModelConfig, Precision
from qwen_audio_train.config.stages import DpoConfig
from qwen_audio_train.errors import SampleError
from qwen_audio_train.model.weights_hash import architecture_hash, weights_hash
from qwen_audio_train.pipeline import reference_scores as kept
from qwen_audio_train.pipeline.batches import BatchBuilder, SampleSource
from qwen_audio_train.pipeline.clips import EncodedSource
from qwen_audio_train.pipeline.measure import identity as identity_of_ids

PAIRS_PROBED = 64
"""So many pairs are rendered to see that they still become the same tokens."""

OTHERWISE_KNOWN = ("size", "start_from", "whisper", "llm", "languages", "demo_lm", "precision")
NOT_NUMERIC = ("attention", "checkpoint_encoder", "checkpoint_llm")
"""Of ``model``: all of them compute the same up to rounding. Any other setting, once there is one, is a part of what
the log-probabilities depend on."""


def identity_of_pairs(builder: BatchBuilder, number: int, tokenizer: Any) -> dict[str, str]:
    """What the log-probabilities of a source depend on besides the model."""
    source = builder.sources[number]
    identity = identity_of_ids(source.shards, tokenizer, source.selection)
    identity["format"] = str(kept.FORMAT_VERSION)
    identity["rendering"] += " " + _probe(builder, source)
    identity["clips"] = "encoded once in float32" if isinstance(source.clips, EncodedSource) else "encoded live"
    return identity


def identity_of_reference(config: DpoConfig, source: str) -> dict[str, str]:
    """What the log-probabilities depend on of the model: as a live reference would compute them."""
    numerics = numerics_of(config)
    return {
        "weights": weights_hash(source),
        "architecture": architecture_hash(source),
        "precision": numerics.precision.value,
        "autocast": "bfloat16" if numerics.autocasts else "none",
        "settings": ", ".join(f"{name}={getattr(config.model, name)}" for name in _numeric_settings()) or "none",
    }


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a reference computes."""

    precision: Precision
    """Dtype of the weights that compute."""
    autocasts: bool


def numerics_of(config: DpoConfig) -> Numerics:
    """As the trainer would run a live reference."""
    autocasts = config.runtime.autocast_bfloat16
    if config.runtime.deepspeed is None:
        return Numerics(config.model.precision, autocasts)
    # DeepSpeed casts the modules themselves.
    is_bfloat16 = autocasts or config.model.precision is Precision.bfloat16
    return Numerics(Precision.bfloat16 if is_bfloat16 else Precision.float32, autocasts=False)


def _numeric_settings() -> list[str]:
    return [field.name for field in fields(ModelConfig) if field.name not in OTHERWISE_KNOWN + NOT_NUMERIC]


def _probe(builder: BatchBuilder, source: SampleSource) -> str:
    """Hash of the ids of the first pairs: finds a change that nobody thought to raise a version for."""
    rows = []
    count = len(source.shards) if source.numbers is None else len(source.numbers)
    for sample in range(min(count, PAIRS_PROBED)):
        try:
            pair = builder.renderer.render_preference(source.shards.record(source.number(sample)))  # type: ignore[arg-type]
        except SampleError:
            continue  # training quarantines it
        rows.append((pair.prompt.input_ids, pair.chosen_ids, pair.rejected_ids))
    return kept.digest_of_ids(rows)
