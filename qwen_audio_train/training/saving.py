"""All ranks write a checkpoint aside, agree whether it worked, and go on training while it is published.

A save that fails for want of room or rights is given up by all ranks together: the run goes on, and what was published
before stays. A save is a few phases; ranks agree after each. Inside one no rank may leave a collective because *its*
disk is full, so what DeepSpeed writes between its barriers is caught file by file.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState

from qwen_audio_train.checkpoint import publish
from qwen_audio_train.checkpoint.background import BackgroundPublishing, Written
from qwen_audio_train.config.checkpoint import CheckpointConfig
from qwen_audio_train.tracking.run_folder import CONFIG_FILE, ENVIRONMENT_FILE

POSITION_FILE = "position.json"
DEEPSPEED_TAG = "global_step"
_WRITER_MARKS = ("PytorchStreamWriter", "inline_container", "cannot be opened", "No space left")
"""Of the RuntimeError in which torch hides that a file could not be written."""

_LISTS_SECONDS = 2.0
_FLUSH_SECONDS = 60.0
"""How long a run that failed waits for the other ranks' lists, and for its own disk."""

logger = logging.getLogger(__name__)


class Saver:
    """Saves one trainer's checkpoints."""

    def __init__(self, trainer: Any, config: CheckpointConfig) -> None:
        self._trainer = trainer
        self._folder = Path(trainer.args.output_dir)
        self._rank = int(trainer.args.process_index)
        self._world = int(trainer.args.world_size)
        self._publishing = BackgroundPublishing(config, rank=self._rank, world=self._world)
        self._under_way: Written | None = None
        self.failed_saves = 0
        """Of this process: for logs and tests."""

    def save(self) -> None:
        """Write a checkpoint aside with all ranks and begin to publish it. Training may go on when this returns."""
        self.settle()
        step = int(self._trainer.state.global_step)
        written = Written(self._folder, step, self._facts(step))
        writes = _Writes(written.inner)
        phases = (self._prepare, self._weights, self._optimizer, self._rest)
        if all(self._agree(writes, phase, written) for phase in phases):
            self._under_way = written
            self._publishing.start(written, writes.own_files)
        else:
            self._give_up(written)

    def settle(self) -> None:
        """Until the checkpoint that is being published is there, or has failed, on all ranks. A collective."""
        if self._under_way is None:
            return
        written, self._under_way = self._under_way, None
        if self._rank:
            self._publishing.join()
        if self._any(self._rank != 0 and self._publishing.failure is not None):
            self._publishing.cancel()
        self._publishing.join()
        failure = self._publishing.failure
        if failure is not None:
            self._warn(f"publishing {written.inner.name}: {type(failure).__name__}: {failure}")
        if self._any(failure is not None):
            self._give_up(written)

    def leave(self) -> None:
        """Let go after an error, when the other ranks may be anywhere: no collective.

        What is written may still be published; a rank that died hands over nothing, and is not waited for.
        """
        if not self._publishing.join(_LISTS_SECONDS):
            self._publishing.cancel()
            self._publishing.join(_FLUSH_SECONDS)

    def _facts(self, step: int) -> dict[str, Any]:
        trainer = self._trainer
        return {"step": step, "world": self._world, "zero_stage": zero_stage(trainer)}

    def _agree(self, writes: _Writes, phase: Callable[[Written, _Writes], None], written: Written) -> bool:
        with writes.catching():
            phase(written, writes)
        for problem in writes.problems:
            self._warn(problem)
        return not self._any(bool(writes.problems))

    def _any(self, here: bool) -> bool:
        """Whether it is so on some rank."""
        if self._world == 1:
            return here
        flag = torch.tensor(int(here), device=self._trainer.args.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def _give_up(self, written: Written) -> None:
        self.failed_saves += 1
        if self._rank == 0:
            shutil.rmtree(written.staging, ignore_errors=True)
            logger.error(
                "NOT SAVED: there is no checkpoint of step %s in %s. The run goes on; the checkpoints before are as "
                "they were, and the next save is tried as usual. Make room, or see what is written above",
                written.step,
                self._folder,
            )
        if self._world > 1:
            dist.barrier()

    def _warn(self, problem: str) -> None:
        logger.error("rank %s: the checkpoint could not be written: %s", self._rank, problem)

    def _prepare(self, written: Written, writes: _Writes) -> None:
        """Folders are made once, by one rank, before another needs them."""
        if self._rank == 0:
            if written.staging.exists():
                shutil.rmtree(written.staging)
            written.inner.mkdir(parents=True)
            if zero_stage(self._trainer) is not None:
                (written.inner / f"{DEEPSPEED_TAG}{written.step}").mkdir()

    def _weights(self, written: Written, writes: _Writes) -> None:
        """In the released layout; the first rank writes."""
        self._trainer.save_model(str(written.inner), _internal_call=True)
        if self._rank == 0:
            (written.inner / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle; config.yaml says the same

    def _optimizer(self, written: Written, writes: _Writes) -> None:
        trainer = self._trainer
        if zero_stage(trainer) is None:
            trainer._save_optimizer_and_scheduler(str(written.inner))
            trainer._save_scaler(str(written.inner))
            return
        engine = trainer.model_wrapped
        tag = f"{DEEPSPEED_TAG}{written.step}"
        with writes.of_engine(engine):
            # As transformers does: under an adapter, the base is not trained and not saved.
            is_adapter = hasattr(trainer.model, "peft_config")
            engine.save_checkpoint(str(written.inner), tag, save_latest=False, exclude_frozen_parameters=is_adapter)
        if self._rank == 0:
            (written.inner / publish.LATEST).write_text(tag, encoding="utf-8")  # where DeepSpeed's loading looks
            torch.save(trainer.lr_scheduler.state_dict(), written.inner / SCHEDULER_NAME)

    def _rest(self, written: Written, writes: _Writes) -> None:
        trainer = self._trainer
        trainer._save_rng_state(str(written.inner))
        if self._world > 1:
            writes.own_files.append(f"rng_state_{self._rank}.pth")
        if self._rank == 0:
            for callback in [*trainer.callback_handler.callbacks, trainer.control]:
                if isinstance(callback, ExportableState):
                    trainer.state.stateful_callbacks[type(callback).__name__] = callback.state()
            trainer.state.save_to_json(str(written.inner / TRAINER_STATE_NAME))
            (written.inner / POSITION_FILE).write_text(trainer.batches.position(written.step), encoding="utf-8")
            for name in (CONFIG_FILE, ENVIRONMENT_FILE):
                if (self._folder.parent / name).is_file():
                    shutil.copyfile(self._folder.parent / name, written.inner / name)


class _Writes:
    """What this rank wrote into one checkpoint, and what it could not write."""

    def __init__(self, inner: Path) -> None:
        self._inner = inner
        self.own_files: list[str] = []
        self.problems: list[str] = []

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Note a file that could not be written, and go on behind the block. Other errors pass."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in _WRITER_MARKS):
                raise
            self.problems.append(f"{type(error).__name__}: {error}")

    @contextmanager
    def of_engine(self, engine: Any) -> Iterator[None]:
        """Note what a DeepSpeed engine writes; a file that fails must not keep this rank from the next barrier."""
        writer = engine.checkpoint_engine
        save = writer.save

        def saving(state_dict: Any, path: str) -> None:
            with self.catching():
                save(state_dict, path)
                self.own_files.append(Path(path).relative_to(self._inner).as_posix())

        writer.save = saving
        # Scripts that a checkpoint of ours does not need: the weights lie beside, in the released layout.
        engine._copy_recovery_script = lambda _: None
        try:
            yield
        finally:
            del writer.save
            del engine._copy_recovery_script


def zero_stage(trainer: Any) -> int | None:
    """DeepSpeed's stage; None without DeepSpeed."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return None if plugin is None else int(plugin.zero_stage)
