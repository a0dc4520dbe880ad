"""Start a trainer where its run stands, and leave its result whole."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from qwen_audio_train.checkpoint import publish
from qwen_audio_train.config.load import to_plain
from qwen_audio_train.config.stages import StageConfig
from qwen_audio_train.errors import ConfigError, PreemptedError
from qwen_audio_train.model.efficient import own_model
from qwen_audio_train.model.flops import StepFlops
from qwen_audio_train.model.knobs import require_bitsandbytes
from qwen_audio_train.model.span_attention import choose_kernel
from qwen_audio_train.model.trainable import count_parameters
from qwen_audio_train.pipeline.sources import open_sources
from qwen_audio_train.tracking.run_folder import CHECKPOINTS, folder_problems, open_run_folder
from qwen_audio_train.tracking.run_state import State, end_state
from qwen_audio_train.tracking.writer import MetricWriter
from qwen_audio_train.training import runtime
from qwen_audio_train.training.arguments import FINAL
from qwen_audio_train.training.callbacks.progress import Progress
from qwen_audio_train.training.callbacks.sign_of_life import SignOfLife
from qwen_audio_train.training.device_limits import peak_tflops
from qwen_audio_train.training.planned import PlannedTraining
from qwen_audio_train.training.resuming import newest_checkpoint, ready_to_load, warn_of_other_versions
from qwen_audio_train.training.runtime import Ranks
from qwen_audio_train.training.saving import POSITION_FILE
from qwen_audio_train.training.throughput import Price, Throughput
from qwen_audio_train.training.watchdog import Watchdog

MIXTURE_FILE = "mixture.txt"

Stage = TypeVar("Stage", bound=StageConfig)

logger = logging.getLogger(__name__)


def is_finished(config: StageConfig) -> bool:
    """Whether this run has its result already; says so."""
    final = Path(config.run.dir) / FINAL
    if (final / publish.MANIFEST).is_file():
        logger.warning("%s is finished: %s exists. Choose another run.dir to train again", config.run.dir, final)
        return True
    return False


def open_run(config: StageConfig, ranks: Ranks) -> None:
    """Make the run's folder and write down what is run with what.

    Raises:
        ConfigError: the sets do not go together with the stage, a library is missing, or the folder is another run's:
            before anything is downloaded or loaded.
    """
    require_bitsandbytes(config.model, config.optim)
    open_sources(config)
    run_dir = Path(config.run.dir)
    # On all ranks alike: none waits for one that has left. Where only the first refuses, launchers end the others.
    problems = list(folder_problems(run_dir, config, judges_life=ranks.is_first))
    if problems:
        raise ConfigError(problems)
    ranks.wait()
    if ranks.is_first:
        open_run_folder(run_dir, config, world=ranks.world)
    ranks.wait()


def to_its_end(main: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """Let a recipe's ``main`` write down how it ended (``<run.dir>/state.json``) and leave the process group."""

    @functools.wraps(main)
    def ended(config: Stage) -> None:
        run_dir = Path(config.run.dir)
        try:
            main(config)
        except PreemptedError as stop:
            end_state(run_dir, State.stopped, str(stop))
            runtime.stop()
            raise
        except KeyboardInterrupt:
            end_state(run_dir, State.stopped, "Ctrl-C")
            raise
        except BaseException as error:
            # Other ranks may still wait in a collective: leaving the group could wait for them in turn.
            end_state(run_dir, State.failed, f"{type(error).__name__}: {error}")
            raise
        end_state(run_dir, State.finished)
        runtime.stop()

    return ended


def checkpoint_to_resume(config: StageConfig, trainer: PlannedTraining, ranks: Ranks) -> Path | None:
    """The folder to resume from, or None; tells the batches where to start. A collective.

    Raises:
        CheckpointError: the run's newest whole checkpoint followed another plan or was sharded another way.
        ConfigError: ``checkpoint.resume=false`` and the folder holds checkpoints.
    """
    checkpoint = newest_checkpoint(Path(config.run.dir) / CHECKPOINTS, ranks)
    if checkpoint is None:
        return None
    if not config.checkpoint.resume:
        raise ConfigError(f"checkpoint.resume=false, but {checkpoint} exists: choose another run.dir, or delete it")
    trainer.batches.resume((checkpoint / POSITION_FILE).read_text(encoding="utf-8"))
    if ranks.is_first:
        logger.warning("Resuming from %s", checkpoint)
        warn_of_other_versions(checkpoint)
    return ready_to_load(checkpoint, trainer, ranks)


def train(trainer: PlannedTraining, config: StageConfig, ranks: Ranks, *, title: str) -> None:
    """Train from where the run stands to its last step.

    Raises:
        KeyboardInterrupt: Ctrl-C asked to stop; a checkpoint was saved.
        PreemptedError: a scheduler did; a checkpoint was saved.
    """
    trainer.guard.optim = config.optim
    checkpoint = checkpoint_to_resume(config, trainer, ranks)
    run_dir = Path(config.run.dir)
    trainer.throughput = throughput(trainer, config, ranks)
    writer = None
    if ranks.is_first:
        _announce(trainer)
        (run_dir / MIXTURE_FILE).write_text(trainer.batches.table + "\n", encoding="utf-8")
        start_step = trainer.batches.start_step
        writer = MetricWriter(run_dir, config.tracking, config=to_plain(config), start_step=start_step)
        trainer.add_callback(SignOfLife(run_dir))
    trainer.add_callback(Progress(title, writer, shows_bar=config.tracking.progress_bar))
    trainer.watchdog = Watchdog.of(config.runtime, run_dir, rank=ranks.rank, world=ranks.world)
    trainer.watchdog.start()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        trainer.saver.settle()
    finally:
        trainer.watchdog.stop()
        trainer.stopper.release()
        trainer.saver.leave()
    if writer is not None:
        writer.close()
    taken = trainer.state.global_step
    if taken < trainer.batches.num_steps:
        if trainer.stopper.agreed_preempted:
            raise PreemptedError(f"{run_dir}: a checkpoint of step {taken} of {trainer.batches.num_steps} is saved")
        raise KeyboardInterrupt


def throughput(trainer: PlannedTraining, config: StageConfig, ranks: Ranks) -> Throughput:
    """The run's counters; they know by now what trains and on what."""
    device = trainer.args.device
    flops = StepFlops.of(trainer.model, reference_passes=trainer.reference_passes)
    peak = peak_tflops(device, config.tracking.peak_tflops)
    if peak is None and device.type == "cuda" and ranks.is_first:
        logger.warning(
            "The peak of '%s' is not known: model_flops_utilisation is left out. Set tracking.peak_tflops to the "
            "dense bf16 TFLOP/s of its data sheet",
            torch.cuda.get_device_name(device),
        )
    return Throughput(Price(flops, num_devices=ranks.world, peak_tflops=peak), device)


def save_final(trainer: PlannedTraining, processor: Any, config: StageConfig, ranks: Ranks) -> Path:
    """Publish the stage's result, whole, as ``<run.dir>/final``: what the next stage and export start from."""
    final = Path(config.run.dir) / FINAL
    staged = final.with_name(f".{FINAL}.inprogress")
    if ranks.is_first and staged.exists():
        shutil.rmtree(staged)
    ranks.wait()
    trainer.save_model(str(staged))
    if ranks.is_first:
        (staged / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle; config.yaml says the same
        processor.save_pretrained(staged)
        publish.publish(staged, final)
        logger.warning("Done: %s", final)
    ranks.wait()
    return final


def compute_dtype(arguments: TrainingArguments, weights: torch.dtype) -> torch.dtype:
    """What matrix products run in."""
    return torch.bfloat16 if arguments.bf16 else weights


def _announce(trainer: PlannedTraining) -> None:
    counts = count_parameters(trainer.model)
    for tower, (trained, total) in counts.items():
        logger.warning("%-9s %13s parameters, %13s train", tower, f"{total:,}", f"{trained:,}")
    batches = trainer.batches
    model = own_model(trainer.model)
    kernel = choose_kernel(model.attention_kernel, trainer.args.device, compute_dtype(trainer.args, model.dtype))
    logger.warning("Rows are %s; attention runs by %s", batches.builder.collator.layout, kernel.value)
    logger.warning("%s\n%s steps in all", batches.table, f"{batches.num_steps:,}")
    for segment in batches.plan.segments[1:]:
        logger.warning("From window %s on: %s", segment.first_window, "; ".join(segment.changed) or "nothing changed")
