"""Identity of a saved model, from its files: nothing is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from qwen_audio_train.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Of a configuration: what says nothing about the numbers that the model computes when no dropout is on.
NOT_COMPUTED = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


def weights_hash(source: str) -> str:
    """Hash (hex) of every weight's name, dtype, shape and bytes, however they are divided among files.

    Args:
        source: folder or hub id of a full model, saved as safetensors.

    Raises:
        CheckpointError: it has no such files, or they are damaged.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=["*.safetensors", INDEX_FILE]))
    hashes: dict[str, str] = {}
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                # Not numpy: it knows no bfloat16.
                hashes |= {name: _hash_of(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): restore it") from error
    return hashlib.blake2b(json.dumps(hashes, sort_keys=True).encode(), digest_size=16).hexdigest()


def architecture_hash(source: str) -> str:
    """Hash (hex) of a model's configuration, as far as it changes what the model computes in evaluation."""
    config = AutoConfig.from_pretrained(source).to_dict()
    return hashlib.blake2b(
        json.dumps(_computed(config), sort_keys=True, default=str).encode(), digest_size=8
    ).hexdigest()


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is not readable ({error}): restore it") from error
        return [folder / Path(str(name)).name for name in sorted(names)]
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}: save the model as safetensors (save_pretrained)"
        )
    return [folder / WEIGHTS_FILE]


def _hash_of(tensor: torch.Tensor) -> str:
    data: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {xxhash.xxh3_128_hexdigest(data)}"


def _computed(config: object) -> object:
    if isinstance(config, dict):
        return {str(name): _computed(value) for name, value in config.items() if not _is_of_no_matter(str(name))}
    return config


def _is_of_no_matter(name: str) -> bool:
    return name in NOT_COMPUTED or "dropout" in name or name == "layerdrop"
