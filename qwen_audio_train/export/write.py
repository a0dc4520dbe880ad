"""The folders of an export, in the names and formats that stock libraries and serving engines read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qwen_audio_train.errors import ExportError
from qwen_audio_train.export.source import ADAPTER_WEIGHTS, Source
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.load import ADAPTER_CONFIG

PEFT_PREFIX = "base_model.model."
MAX_FILE_SIZE = "5GB"


def write_model(model: EfficientQwen2Audio, folder: Path, dtype: torch.dtype) -> None:
    """A full Hugging Face folder (safetensors) that names the stock class, laid out as the released checkpoint.

    The model's parameters, float32, are left rounded to what was stored.
    """
    # Parameters alone: model.to() would also round buffers, such as rotary frequencies, that are never stored.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder, max_shard_size=MAX_FILE_SIZE)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()


def released_name(name: str) -> str:
    """Name of a parameter in the released checkpoint, from its name in transformers 5."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return name


def write_adapter(source: Source, folder: Path, base: str) -> None:
    """The stage's adapter as it is; ``base`` goes into its settings as the model it stands on."""
    folder.mkdir(parents=True)
    shutil.copyfile(Path(source.stage) / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    settings = adapter_settings(source.stage)
    settings["base_model_name_or_path"] = base
    _write_settings(folder, settings)


def merge(model: Any) -> EfficientQwen2Audio:
    """Fold every adapter layer, and the modules that were trained in full, into the model.

    Raises:
        ExportError: a merged weight is not finite.
    """
    try:
        merged: EfficientQwen2Audio = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ExportError(f"the adapter does not merge: {error}; its training has diverged") from error
    return merged


def fold_towers(model: Any) -> EfficientQwen2Audio:
    """Fold encoder and projector changes into the model and leave its language model as it was."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name and in_language_model(name):
            # W + scale * 0 @ A is W to the last bit.
            parameter.data.zero_()
    return merge(model)


def write_llm_adapter(source: Source, folder: Path, base: str) -> None:
    """The language model's part of the adapter, in the names of the released checkpoint, targets as a plain list.

    Raises:
        ExportError: the adapter has no such part, or settings that do not survive the split.
    """
    settings = adapter_settings(source.stage)
    refuse_llm_only(source, settings)
    tensors = load_file(Path(source.stage) / ADAPTER_WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if ".lora_" in name and in_language_model(name)}
    folder.mkdir(parents=True)
    renamed = {PEFT_PREFIX + released_name(name.removeprefix(PEFT_PREFIX)): t for name, t in kept.items()}
    save_file(renamed, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings |= {
        "base_model_name_or_path": base,
        "target_modules": sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in kept}),
        # The encoder's layers bear the same last names.
        "exclude_modules": r".*audio_tower.*",
        "modules_to_save": None,
    }
    _write_settings(folder, settings)


def refuse_llm_only(source: Source, settings: dict[str, Any]) -> None:
    """Say early what cannot be split. Raises ExportError."""
    tensors = load_file(Path(source.stage) / ADAPTER_WEIGHTS)
    if not any(".lora_" in name and in_language_model(name) for name in tensors):
        raise ExportError(
            f"export.llm_only=true, but the adapter of {source.stage} has no part in the language model: "
            "serve merged/ instead and set export.llm_only=false"
        )
    if settings.get("use_dora") or settings.get("rank_pattern") or settings.get("alpha_pattern"):
        raise ExportError(
            f"export.llm_only=true, but the adapter of {source.stage} uses DoRA or ranks that vary by layer, which "
            "serving engines refuse: serve merged/ instead and set export.llm_only=false"
        )


def in_language_model(name: str) -> bool:
    """Whether a parameter belongs to the language model or its head."""
    return "audio_tower." not in name and "multi_modal_projector." not in name


def adapter_settings(folder: str) -> dict[str, Any]:
    """Content of adapter_config.json."""
    settings: dict[str, Any] = json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return settings


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    """Size on disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
