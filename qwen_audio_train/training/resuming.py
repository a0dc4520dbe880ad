"""What goes on from a checkpoint, by the same number of ranks or another."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import Trainer

from qwen_audio_train.checkpoint import manifest, publish, universal
from qwen_audio_train.config.model import ModelConfig, Precision
from qwen_audio_train.model.load import is_adapter, load_model
from qwen_audio_train.tracking.run_folder import ENVIRONMENT_FILE, installed_packages
from qwen_audio_train.training.runtime import Ranks
from qwen_audio_train.training.saving import zero_stage

logger = logging.getLogger(__name__)


class ResumedTraining(Trainer):
    """Mixin over Trainer: loads weights by our names, and a universal checkpoint so that the optimiser goes on."""

    _decays: tuple[float, ...] = ()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The library's, whose groups' weight decay is remembered: a universal ZeRO-3 checkpoint mixes it up."""
        optimizer = super().create_optimizer(model)
        self._decays = tuple(group["weight_decay"] for group in optimizer.param_groups)
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights of a checkpoint, all of them.

        The library would hand the file's tensors to ``load_state_dict`` by the names they have there, which are the
        released layout's, warn that none fits, and train on from where the stage began.
        """
        if is_adapter(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target = self.model if model is None else model
        precision = Precision(str(target.dtype).removeprefix("torch."))
        saved = load_model(resume_from_checkpoint, ModelConfig(precision=precision))
        target.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and zero_stage(self) is not None and universal.is_universal(Path(checkpoint)):
            universal.mend_loaded(self.model_wrapped, self._decays)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As they were, rank by rank; another number of ranks gets new generators, each rank its own."""
        if checkpoint is None:
            return
        facts = manifest.read(Path(checkpoint)).facts
        world = int(self.args.world_size)
        if facts.get("world", world) == world:
            super()._load_rng_state(checkpoint)
            return
        rank = int(self.args.process_index)
        # One number for (seed, step, world, rank): the same start again draws the same.
        seeds = np.random.SeedSequence([self.args.seed, facts["step"], world, rank]).generate_state(1)
        seed = int(seeds[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def newest_checkpoint(folder: Path, ranks: Ranks) -> Path | None:
    """The newest checkpoint that verifies: the first rank looks, all get its answer. A collective."""
    step = -1
    if ranks.is_first:
        publish.recover(folder)
        found = publish.newest_whole(folder)
        step = -1 if found is None else int(manifest.read(found).facts.get("step", found.name.partition("-")[2]))
    if ranks.world > 1:
        told = torch.tensor(step, device="cpu" if ranks.uses_cpu else "cuda")
        dist.broadcast(told, src=0)
        step = int(told)
    return None if step < 0 else publish.checkpoint_folder(folder, step)


def warn_of_other_versions(checkpoint: Path) -> None:
    """An upgrade in the middle of a run can change what it learns, and nobody would look there."""
    path = checkpoint / ENVIRONMENT_FILE
    if not path.is_file():
        return
    was = json.loads(path.read_text(encoding="utf-8"))["packages"]
    now = installed_packages()
    changed = [f"{name} was {was.get(name)}, is {now[name]}" for name in now if was.get(name) != now[name]]
    if changed:
        logger.warning("%s was written with other versions: %s", checkpoint, "; ".join(changed))


def ready_to_load(checkpoint: Path, trainer: Any, ranks: Ranks) -> Path:
    """The folder that this run's engine can load: the checkpoint, or what it is converted to. A collective.

    Raises:
        CheckpointError: it was written under another sharding, which cannot be converted.
    """
    stage = zero_stage(trainer)
    facts = manifest.read(checkpoint).facts
    if not facts:
        # Of a version before facts were written: only the same number of ranks can be meant.
        facts = {"world": ranks.world, "zero_stage": stage}
    universal.require_convertible(checkpoint, was=facts["zero_stage"], now=stage)
    if facts["world"] == ranks.world:
        return checkpoint
    if ranks.is_first:
        logger.warning("%s was written by %s ranks, going on with %s", checkpoint, facts["world"], ranks.world)
    if stage is None:
        return checkpoint
    if ranks.is_first:
        universal.convert(checkpoint)
    ranks.wait()
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
    return universal.universal_folder(checkpoint)
