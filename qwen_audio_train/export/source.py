"""What a stage left behind, opened for export: its adapter, the model below it, and how its weights are stored."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig

from qwen_audio_train.errors import CheckpointError, ExportError
from qwen_audio_train.export.answers import VerificationSample
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.load import ADAPTER_CONFIG, base_of, is_adapter, load_model, load_processor

logger = logging.getLogger(__name__)
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Source:
    """A stage's ``final`` folder."""

    stage: str
    has_adapter: bool
    base: str
    """What the adapter stands on: a folder or hub id; the stage itself when it is a full model."""
    dtype: torch.dtype
    """That weights are stored in."""


def open_source(stage: str) -> Source:
    """Look at a stage's folder without loading weights.

    Raises:
        ExportError: something that the export needs is missing.
    """
    has_adapter = is_adapter(stage)
    if has_adapter and not (Path(stage) / ADAPTER_WEIGHTS).is_file():
        raise ExportError(f"{stage} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}: is the stage finished?")
    try:
        base = base_of(stage) if has_adapter else stage
        if is_adapter(base):
            raise ExportError(
                f"{stage} stands on {base}, an adapter too, which stock libraries cannot stack: name a full model as "
                f"base_model_name_or_path in {stage}/{ADAPTER_CONFIG} (exporting {base} makes one, merged/)"
            )
        config = AutoConfig.from_pretrained(base)
    except (CheckpointError, OSError, ValueError) as error:
        raise ExportError(f"the model below {stage} cannot be found: {error}") from error
    dtype = config.dtype or config.text_config.dtype or torch.float32
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    return Source(stage, has_adapter, base, dtype)


def load_base(source: Source) -> EfficientQwen2Audio:
    """The model below the adapter, in float32."""
    try:
        return load_model(source.base).eval()
    except (CheckpointError, OSError) as error:
        raise ExportError(f"{source.stage}: its model {source.base} cannot be loaded: {error}") from error


def load_trained(source: Source) -> Any:
    """The model as it was trained, in float32: the adapter, where there is one, stands beside its base unmerged."""
    model = load_base(source)
    return PeftModel.from_pretrained(model, source.stage).eval() if source.has_adapter else model


def source_processor(source: Source) -> Any:
    """The processor that lies with the stage."""
    try:
        return load_processor(source.stage)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{source.stage} has no processor that loads ({error}): a finished stage saves it beside its weights; copy "
            f"it from {source.base}"
        ) from error


def fingerprint(source: Source, samples: Sequence[VerificationSample], settings: dict[str, Any]) -> str:
    """Identity (hex) of everything that an export depends on; files count by name, size and time of change."""
    facts: dict[str, Any] = {
        "files": [_files(folder) for folder in (source.stage, source.base)],
        "settings": settings,
        "versions": [importlib.metadata.version(name) for name in ("torch", "transformers", "peft")],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for sample in samples:
        digest.update(sample.input_ids.astype("<i8").tobytes())
        for waveform in sample.waveforms:
            digest.update(waveform.tobytes())
    return digest.hexdigest()


def _files(folder: str) -> list[tuple[str, int, int]]:
    """Empty for a hub id, whose name stands in the adapter's own files."""
    root = Path(folder)
    found = [(path, path.stat()) for path in sorted(root.rglob("*")) if path.is_file()]
    return [(str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns) for path, stat in found]
