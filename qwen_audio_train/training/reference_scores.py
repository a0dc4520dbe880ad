"""Asks the reference once about every pair, so that training holds no reference model.

Works before TrainingArguments exist, like everything that is computed with a whole model: under ZeRO-3 a model that is
built after is partitioned. Ranks share the folder that the files lie in, as they share the run's.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from qwen_audio_train.config.stages import DpoConfig
from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.load import load_model
from qwen_audio_train.pipeline import reference_scores as kept
from qwen_audio_train.pipeline.batches import PlannedBatches, SampleSource
from qwen_audio_train.pipeline.collate import to_device
from qwen_audio_train.pipeline.loading import BinReader, JobSampler, jobs
from qwen_audio_train.pipeline.quarantine import Limits, MicroBatch
from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan, rank_bins
from qwen_audio_train.plan.windows import Bin
from qwen_audio_train.samples import FloatArray, Lengths
from qwen_audio_train.training.reference_identity import identity_of_pairs, identity_of_reference, numerics_of
from qwen_audio_train.training.runtime import Ranks

logger = logging.getLogger(__name__)

NOTE = "reference.json"
"""In the run's folder: what the reference is, and where its log-probabilities are."""


def store_reference_scores(
    config: DpoConfig, source: str, tokenizer: Any, batches: PlannedBatches, ranks: Ranks
) -> None:
    """Let the batches bring the reference's log-probabilities of their pairs; computes what is not kept yet.

    Args:
        source: folder or hub id of the reference: the model that the stage starts from (under a LoRA its base).

    Raises:
        CheckpointError: a kept file is damaged, or not what its name says; or the reference gives no finite numbers.
        ShardError: too many pairs cannot be used.
    """
    of_model = _agreed(config, "reference", partial(identity_of_reference, config, source), ranks)
    builder = batches.builder
    reference = _Reference(config, source, ranks)
    sources = []
    for number, of_source in enumerate(builder.sources):
        identity = identity_of_pairs(builder, number, tokenizer) | of_model
        place = _agreed(config, f"scores {number}", partial(_place, of_source, identity, config), ranks)
        path = Path(place["path"])
        if not place["is_there"]:
            _Computing(batches, number, path, reference, ranks, config.tracking.progress_bar).run(identity)
        scores = kept.open_scores(path, identity, len(of_source.shards))
        if ranks.is_first:
            _say(of_source, scores)
        sources.append(replace(of_source, reference=scores))
    reference.release()
    batches.builder = replace(builder, sources=tuple(sources))


def _place(source: SampleSource, identity: kept.Identity, config: DpoConfig) -> dict[str, Any]:
    folders = kept.places(source.shards, Path(config.data.cache_dir))
    found = kept.find(folders, identity)
    return {"path": str(found or folders[0] / kept.file_name(identity)), "is_there": found is not None}


def _agreed(config: DpoConfig, what: str, find_out: Callable[[], dict[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """What the first rank finds out, on every rank: through a file, for no process unpickles another's words.

    Hashing 15 GB on each of eight ranks would say the same; and ranks that look for a file one after another may find
    different things.
    """
    note = Path(config.run.dir) / NOTE
    if ranks.is_first:
        notes = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        note.write_text(json.dumps(notes | {what: find_out()}, indent=1) + "\n", encoding="utf-8")
    ranks.wait()
    agreed: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))[what]
    ranks.wait()  # until all have read
    return agreed


class _Reference:
    """The model, loaded when it is first asked."""

    def __init__(self, config: DpoConfig, source: str, ranks: Ranks) -> None:
        self._config = config
        self._source = source
        self._device = torch.device("cpu") if ranks.uses_cpu else torch.device("cuda", torch.cuda.current_device())
        self._model: EfficientQwen2Audio | None = None

    def log_probs(self, batch: MicroBatch) -> FloatArray:
        """(pairs, 2): of the chosen and of the rejected answers."""
        if self._model is None:
            self._model = self._loaded()
        moved = to_device(batch, self._device)
        with torch.no_grad(), self._autocast():
            scores = self._model(rows=moved["rows"], labels=moved["input_ids"]).log_probs.sum(dim=1)
        both: FloatArray = scores.float().cpu().numpy().reshape(2, -1).T
        return both

    def release(self) -> None:
        """Give the memory back."""
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _loaded(self) -> EfficientQwen2Audio:
        model = load_model(self._source, replace(self._config.model, checkpoint_encoder=False, checkpoint_llm=False))
        if self._config.runtime.deepspeed is not None:
            # As it does, buffers too.
            model = model.to(getattr(torch, numerics_of(self._config).precision.value))
        return model.requires_grad_(False).eval().to(self._device)

    def _autocast(self) -> AbstractContextManager[Any]:
        if not numerics_of(self._config).autocasts:
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)


class _Computing:
    """Scores one source: each rank its bins, the first rank puts them together."""

    def __init__(
        self,
        batches: PlannedBatches,
        number: int,
        path: Path,
        reference: _Reference,
        ranks: Ranks,
        shows_progress: bool,
    ) -> None:
        self._batches = batches
        self._number = number
        self._source: SampleSource = batches.builder.sources[number]
        self._path = path
        self._reference = reference
        self._ranks = ranks
        self._shows_progress = shows_progress
        self._parts = kept.Parts(path)

    def run(self, identity: kept.Identity) -> None:
        """Make the file."""
        numbers = self._numbers()
        missing = np.flatnonzero(~np.isin(numbers, self._parts.read()["sample"]))
        self._ranks.wait()
        if len(missing):
            self._score(missing, num_done=len(numbers) - len(missing))
        self._ranks.wait()
        if self._ranks.is_first and not self._path.is_file():
            self._merge(numbers, identity)
        self._ranks.wait()

    def _numbers(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Of the source's samples in the set."""
        if self._source.numbers is None:
            return np.arange(len(self._source.shards), dtype=np.int64)
        return np.asarray(self._source.numbers, np.int64)

    def _score(self, missing: Sequence[int] | np.ndarray[Any, Any], *, num_done: int) -> None:
        bins = list(self._bins(np.asarray(missing)))
        ahead = max(1, self._batches.num_workers) if self._batches.reads_ahead else 0
        loader: DataLoader[MicroBatch] = DataLoader(
            BinReader(self._batches.builder),
            sampler=JobSampler(lambda: jobs(iter(bins), ahead), len(bins)),
            batch_size=None,
            num_workers=self._batches.num_workers,
            generator=torch.Generator(),
        )
        name = self._source.name
        if self._ranks.is_first:
            logger.warning(
                "%s: asking the reference about %s pairs, %s are done; kept in %s",
                name, f"{len(missing):,}", f"{num_done:,}", self._path,
            )  # fmt: skip
        with tqdm(
            total=sum(map(len, bins)),
            desc=f"Reference of {name}",
            unit="pair",
            disable=not (self._shows_progress and self._ranks.is_first),
        ) as bar:
            for planned, batch in zip(bins, loader, strict=True):
                self._add(planned, batch)
                bar.update(len(planned))

    def _bins(self, missing: np.ndarray[Any, Any]) -> Iterator[Bin]:
        """This rank's bins of an unshuffled plan of the missing samples: the world's ranks take them in turn."""
        of_all = self._batches.plan.sources[self._number]
        lengths = Lengths(
            llm_tokens=of_all.lengths.llm_tokens[missing],
            supervised_tokens=of_all.lengths.supervised_tokens[missing],
            encoder_frames=of_all.lengths.encoder_frames[missing],
        )
        world = self._ranks.world
        trained: Budget = self._batches.plan.budget
        budget = replace(trained, shuffle=False, bins_per_step=world, window_samples=max(trained.window_samples, world))
        plan = Plan([Source(of_all.name, lengths, of_all.fingerprint)], seed=0, budget=budget)
        steps = plan.steps_from()
        for _ in range(plan.steps_in_epoch(0)):
            for planned in rank_bins(next(steps), self._ranks.rank, world):
                if len(planned):
                    sources = np.full(len(planned), self._number, np.int32)
                    yield Bin(sources, missing[planned.samples], planned.epochs)

    def _add(self, planned: Bin, batch: MicroBatch) -> None:
        usable = [
            self._source.number(sample)
            for sample, is_usable in zip(planned.samples.tolist(), batch.usable, strict=True)
            if is_usable
        ]
        log_probs = np.zeros((0, 2), np.float32)
        if usable:
            log_probs = self._reference.log_probs(batch)
            wrong = np.flatnonzero(~np.isfinite(log_probs).all(axis=1))
            if len(wrong):
                raise CheckpointError(
                    f"the reference gives {log_probs[wrong[0]].tolist()} as log-probabilities of sample "
                    f"{usable[wrong[0]]} of {self._source.name}: its weights are broken, or the precision it computes "
                    "in; mend model.start_from, or set model.precision=float32"
                )
        self._parts.add(usable, log_probs, batch.failures)

    def _merge(self, numbers: np.ndarray[Any, Any], identity: kept.Identity) -> None:
        records, failures = self._parts.read(), self._parts.failures()
        log_probs = np.full((len(self._source.shards), 2), np.nan, np.float32)
        log_probs[records["sample"], 0] = records["chosen"]
        log_probs[records["sample"], 1] = records["rejected"]
        lost = np.flatnonzero(np.isnan(log_probs[numbers, 0]) & ~np.isin(numbers, list(failures)))
        if len(lost):
            raise CheckpointError(
                f"{len(lost)} of {len(numbers)} pairs of {self._source.name} are not in {self._parts.folder}: either "
                "the ranks do not share this folder (put set and data.cache_dir where they do), or another run "
                "computes the same; start again, and what is done is kept"
            )
        unusable = [failures[sample] for sample in sorted(failures)]
        limits: Limits = self._batches.quarantine.limits
        limits.require(
            num_bad=len(unusable),
            num_read=len(numbers),
            longest_row=0,
            where=self._parts.folder,
            first=[str(failure) for failure in unusable],
        )
        kept.publish(self._path, log_probs, identity, unusable)
        self._parts.remove()


def _say(source: SampleSource, scores: kept.ReferenceScores) -> None:
    numbers = slice(None) if source.numbers is None else source.numbers
    without = int(np.isnan(scores.log_probs[numbers, 0]).sum())
    told = f", {without:,} pairs have none and are left out" if without else ""
    logger.warning("%s: reference log-probabilities from %s%s", source.name, scores.path, told)
