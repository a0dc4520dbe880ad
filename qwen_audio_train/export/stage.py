"""A stage's result -> verified folders that stock libraries load; all of them appear at once, or none.

<output>/adapter/            when the stage trained one
<output>/merged/
<output>/llm_only/{base,adapter}/   on request
<output>/verification.json   what was compared, and by how much it differed
<output>/manifest.json       size and SHA-256 of every file
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from qwen_audio_train.checkpoint import publish
from qwen_audio_train.config.export import ExportConfig
from qwen_audio_train.errors import CheckpointError, ExportError
from qwen_audio_train.export import source as sources
from qwen_audio_train.export import write
from qwen_audio_train.export.answers import VerificationSample, answer_padded, answer_true_length, prompt_text
from qwen_audio_train.export.card import DataFacts, Kind, card
from qwen_audio_train.export.verify import Expected, Target, Verification, best_device, logit_difference, verify

logger = logging.getLogger(__name__)
REPORT = "verification.json"
ROUNDING_ALLOWANCE = 16
"""In units of the stored dtype's epsilon times the largest logit: what storing folded weights in 16 bits may change."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What lies in the output folder."""

    output: Path
    verifications: dict[str, Verification]
    """By target: ``adapter``, ``merged``, ``llm_only``."""
    num_bytes: dict[str, int]
    """By folder."""
    is_new: bool
    """False when a finished export of the same inputs was there already."""


@dataclass
class _Job:
    """What the steps share."""

    source: sources.Source
    staged: Path
    output: Path
    samples: Sequence[VerificationSample]
    processor: Any
    prompts: list[str]
    device: str
    targets: list[Target] = field(default_factory=list)
    expected: dict[str, Expected] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    cards: list[tuple[str, Kind, str | None, str]] = field(default_factory=list)
    """Folder, kind, base it names, target that vouches for it."""


def export_stage(config: ExportConfig, samples: Sequence[VerificationSample], data: DataFacts) -> Exported:
    """Write, verify in a fresh process, publish. A finished export of the same inputs is left as it is.

    Raises:
        ExportError: the stage cannot be exported, or an export does not reload equal; it is then left beside the
            output under ``<output>.failed``.
    """
    if not samples:
        raise ExportError("no samples to verify with: export.verify_set is empty")
    output = Path(config.output)
    source = sources.open_source(config.stage)
    settings = {"llm_only": config.llm_only, "max_logit_difference": config.max_logit_difference, "stage": config.stage}
    inputs = sources.fingerprint(source, samples, settings)
    if (finished := _finished(output, inputs)) is not None:
        logger.info("%s is exported and verified already; its files are whole", output)
        return finished
    if config.llm_only and not source.has_adapter:
        raise ExportError(f"export.llm_only=true, but {config.stage} is a full model: set export.llm_only=false")
    if config.llm_only:
        write.refuse_llm_only(source, write.adapter_settings(source.stage))
    staged = output.with_name(f".{output.name}.inprogress")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        report = _write_and_verify(config, source, staged, output, samples, data)
    except ExportError as error:
        failed = output.with_name(f"{output.name}.failed")
        shutil.rmtree(failed, ignore_errors=True)
        os.replace(staged, failed)
        raise ExportError(f"{error} (what was written lies in {failed})") from error
    report["inputs"] = inputs
    (staged / REPORT).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    publish.publish(staged, output)
    return _exported(output, report, is_new=True)


def _finished(output: Path, inputs: str) -> Exported | None:
    if not output.is_dir() or not any(output.iterdir()):
        return None
    if not (output / REPORT).is_file():
        raise ExportError(f"{output} exists and is no export of ours: name another export.output, or remove it")
    report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    if report.get("inputs") != inputs:
        logger.info("%s is an export of other inputs; it is replaced when the new one is verified", output)
        return None
    try:
        publish.verify(output)
    except CheckpointError as error:
        logger.warning("Exporting again: %s", error)
        return None
    return _exported(output, report, is_new=False)


def _exported(output: Path, report: dict[str, Any], *, is_new: bool) -> Exported:
    verifications = {name: Verification(**found) for name, found in report["targets"].items()}
    return Exported(output, verifications, report["bytes"], is_new)


def _write_and_verify(
    config: ExportConfig,
    source: sources.Source,
    staged: Path,
    output: Path,
    samples: Sequence[VerificationSample],
    data: DataFacts,
) -> dict[str, Any]:
    processor = sources.source_processor(source)
    prompts = [prompt_text(processor, sample) for sample in samples]
    job = _Job(source, staged, output, samples, processor, prompts, best_device())
    model = sources.load_trained(source).to(job.device)
    logger.info("Answering %d samples with the trained model on %s", len(samples), job.device)
    trained = _answers(job, model)
    if source.has_adapter:
        _write_adapter(job, trained)
        logger.info("Merging the adapter")
        model = write.merge(model)
    _write_merged(job, model, trained)
    del model
    if config.llm_only:
        _write_llm_only(job, trained)
    if job.device == "cuda":
        torch.cuda.empty_cache()  # the fresh process needs the room
    verifications, versions = verify(
        job.targets,
        samples,
        prompts,
        job.expected,
        max_logit_difference=config.max_logit_difference,
        device=job.device,
    )
    _write_cards(job, data, verifications, versions)
    return {
        "stage": source.stage,
        "targets": {name: asdict(verification) for name, verification in verifications.items()},
        "rounding": job.rounding,
        "versions": versions,
        "bytes": {folder: write.folder_bytes(staged / folder) for folder, _, _, _ in job.cards},
    }


def _answers(job: _Job, model: Any) -> Expected:
    padded = [answer_padded(model, job.processor, text, s) for text, s in zip(job.prompts, job.samples, strict=True)]
    return Expected(padded, [answer_true_length(model, sample) for sample in job.samples])


def _write_adapter(job: _Job, trained: Expected) -> None:
    # A folder by its absolute path, since peft resolves a relative one against the reader's current directory.
    base = str(Path(job.source.base).absolute()) if Path(job.source.base).is_dir() else job.source.base
    logger.info("Writing adapter/")
    folder = job.staged / "adapter"
    write.write_adapter(job.source, folder, base)
    job.processor.save_pretrained(folder)
    job.targets.append(Target("adapter", base, str(folder), str(folder)))
    job.expected["adapter"] = trained
    job.cards.append(("adapter", Kind.adapter, base, "adapter"))


def _write_merged(job: _Job, model: Any, trained: Expected) -> None:
    logger.info("Writing merged/ in %s", job.source.dtype)
    folder = job.staged / "merged"
    write.write_model(model, folder, job.source.dtype)
    job.processor.save_pretrained(folder)
    job.targets.append(Target("merged", str(folder), None, str(folder)))
    job.expected["merged"] = _stored(job, "merged", model, trained)
    base = job.source.base if job.source.has_adapter else None
    job.cards.append(("merged", Kind.merged, base, "merged"))


def _write_llm_only(job: _Job, trained: Expected) -> None:
    logger.info("Writing llm_only/: encoder and projector changes folded into the base")
    folder = job.staged / "llm_only"
    model = write.fold_towers(sources.load_trained(job.source))
    write.write_model(model, folder / "base", job.source.dtype)
    job.processor.save_pretrained(folder / "base")
    base = str((job.output / "llm_only" / "base").absolute())
    write.write_llm_adapter(job.source, folder / "adapter", base)
    job.processor.save_pretrained(folder / "adapter")
    job.targets.append(Target("llm_only", str(folder / "base"), str(folder / "adapter"), str(folder / "adapter")))
    if job.source.dtype is not torch.float32:
        model = PeftModel.from_pretrained(model, str(folder / "adapter")).eval()
    job.expected["llm_only"] = _stored(job, "llm_only", model, trained)
    job.cards += [
        ("llm_only/base", Kind.llm_base, job.source.base, "llm_only"),
        ("llm_only/adapter", Kind.llm_adapter, base, "llm_only"),
    ]


def _stored(job: _Job, name: str, model: Any, trained: Expected) -> Expected:
    """What folded weights must say once stored: the trained model's answers, but for what 16 bits round away.

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    if job.source.dtype is torch.float32:
        return trained
    stored = _answers(job, model.to(job.device))
    rounding = max(logit_difference(a, b) for a, b in zip(trained.padded, stored.padded, strict=True))
    largest = max(float(abs(answer.logits).max()) for answer in trained.padded)
    allowance = ROUNDING_ALLOWANCE * torch.finfo(job.source.dtype).eps * largest
    logger.info("%s: storing in %s changes logits by up to %.2e", name, job.source.dtype, rounding)
    if not rounding <= allowance:
        raise ExportError(
            f"{name}: folding the adapter and storing in {job.source.dtype} changes logits by {rounding:.3e}, more "
            f"than rounding explains ({allowance:.3e}): export the adapter alone, or train it on a float32 base"
        )
    job.rounding[name] = rounding
    return stored


def _write_cards(job: _Job, data: DataFacts, verifications: dict[str, Verification], versions: dict[str, str]) -> None:
    dtype = str(job.source.dtype).removeprefix("torch.")
    for folder, kind, base, target in job.cards:
        at = job.staged / folder
        settings = write.adapter_settings(str(at)) if (at / "adapter_config.json").is_file() else None
        verification = verifications.get(target)
        text = card(
            kind, base=base, settings=settings, dtype=dtype, data=data, verification=verification, versions=versions
        )
        (at / "README.md").write_text(text, encoding="utf-8")
