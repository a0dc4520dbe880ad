"""The proof: what the exported folders say in a fresh process equals what the trained model says here."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from qwen_audio_train.errors import ExportError
from qwen_audio_train.export.answers import MAX_NEW_TOKENS, NUM_POSITIONS, Answer, VerificationSample

logger = logging.getLogger(__name__)
CHILD = Path(__file__).with_name("reload.py")
STDERR_LINES = 15


@dataclass(frozen=True, slots=True)
class Target:
    """One way to load the export."""

    name: str
    base: str
    """Folder or hub id of the full model."""
    adapter: str | None
    processor: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What the reload of one target showed."""

    max_logit_difference: float
    """Largest over all samples, compared positions and vocabulary entries, to both of our paths."""
    num_samples: int
    generations_equal: bool
    seconds: float
    """Of the fresh process, all targets together."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a target must say: by the stock forward over 30 s of padding, and by the true-length path."""

    padded: Sequence[Answer]
    true_length: Sequence[Answer]


def verify(
    targets: Sequence[Target],
    samples: Sequence[VerificationSample],
    prompts: Sequence[str],
    expected: Mapping[str, Expected],
    *,
    max_logit_difference: float,
    device: str,
) -> tuple[dict[str, Verification], dict[str, str]]:
    """Load every target in one fresh process with stock libraries only, and compare.

    Returns:
        The findings by target, and the versions of the libraries that were used.

    Raises:
        ExportError: the process failed, or logits or generations differ: which, by how much, and the remedy.
    """
    start = time.monotonic()
    found, versions = _reload(targets, samples, prompts, device)
    seconds = round(time.monotonic() - start, 1)
    verifications = {}
    for target in targets:
        path_of = {"padded": expected[target.name].padded, "true length": expected[target.name].true_length}
        differences = [
            _compare(target.name, path, samples, answers, found[target.name], max_logit_difference)
            for path, answers in path_of.items()
        ]
        verifications[target.name] = Verification(max(differences), len(samples), True, seconds)
        logger.info("%s: reloads equal, largest logit difference %.2e", target.name, max(differences))
    return verifications, versions


def _compare(
    name: str,
    path: str,
    samples: Sequence[VerificationSample],
    expected: Sequence[Answer],
    found: Sequence[Answer],
    limit: float,
) -> float:
    differences = [logit_difference(want, got) for want, got in zip(expected, found, strict=True)]
    worst = int(np.argmax(differences))  # a NaN counts as the largest
    others = [
        sample.name
        for sample, want, got in zip(samples, expected, found, strict=True)
        if want.generated_ids != got.generated_ids
    ]
    if differences[worst] <= limit and not others:
        return differences[worst]
    raise ExportError(
        f"{name}: reloaded in a fresh process it differs from the trained model ({path} path): logits by up to "
        f"{differences[worst]:.3e} at {samples[worst].name} (export.max_logit_difference={limit:g}), and "
        f"{len(others)} of {len(samples)} generations differ{': ' + others[0] if others else ''}. Do not use these "
        "files. Export again; if the figure stays, check that the stage's base model has not changed since training "
        "and that the installed torch, transformers and peft are the pinned ones; raise the limit only for a "
        "difference that rounding explains"
    )


def logit_difference(want: Answer, got: Answer) -> float:
    """Largest absolute difference; infinite when the shapes or any value's finiteness differ."""
    if want.logits.shape != got.logits.shape or not np.isfinite(got.logits).all():
        return float("inf")
    return float(np.abs(want.logits - got.logits).max())


def _reload(
    targets: Sequence[Target], samples: Sequence[VerificationSample], prompts: Sequence[str], device: str
) -> tuple[dict[str, list[Answer]], dict[str, str]]:
    request: dict[str, Any] = {
        "targets": [{"name": t.name, "base": t.base, "adapter": t.adapter, "processor": t.processor} for t in targets],
        "prompts": list(prompts),
        "num_clips": [len(sample.waveforms) for sample in samples],
        "device": device,
        "num_positions": NUM_POSITIONS,
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    clips = {
        f"{i}.{k}": np.ascontiguousarray(w) for i, sample in enumerate(samples) for k, w in enumerate(sample.waveforms)
    }
    with tempfile.TemporaryDirectory(prefix="verify-export-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        save_file(clips, folder / "clips.safetensors")
        logger.info("Reloading %s in a fresh process", ", ".join(target.name for target in targets))
        # -P keeps this package's folder, where the script lies, off the child's import path.
        command = [sys.executable, "-P", str(CHILD), name]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode != 0:
            tail = "\n".join(child.stderr.strip().splitlines()[-STDERR_LINES:])
            raise ExportError(
                f"stock transformers and peft could not load the export (exit code {child.returncode}); the end of "
                f"what they said:\n{tail}"
            )
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert not result["ours"], f"the fresh process imported {result['ours']}"
        found = {t.name: _answers(folder / f"{t.name}.safetensors", samples, t.name) for t in targets}
    return found, result["versions"]


def _answers(path: Path, samples: Sequence[VerificationSample], name: str) -> list[Answer]:
    tensors = load_file(path)
    for index, sample in enumerate(samples):
        if tensors[f"{index}.prompt_ids"].tolist() != sample.input_ids.tolist():
            raise ExportError(
                f"{name}: its processor gives other ids for the prompt of {sample.name} than training saw; "
                "the exported processor is not the stage's"
            )
    return [
        Answer(tensors[f"{index}.logits"], tuple(tensors[f"{index}.generated_ids"].tolist()))
        for index in range(len(samples))
    ]


def best_device() -> str:
    """Where verification runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"
