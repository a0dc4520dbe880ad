"""Run a recipe (a batch job's python) and write down which samples each step takes; wait where a test wants it.

RECORD_DIR        a file of JSON lines for every process
HOLD_AFTER_STEP   the job's first start takes so many steps and then waits until it is told to stop
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    from qwen_audio_train.pipeline.batches import BatchBuilder
    from qwen_audio_train.training.planned import PlannedTraining

    folder = Path(os.environ["RECORD_DIR"])
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    rank = os.environ["RANK"]
    record = (folder / f"job{os.environ['SLURM_JOB_ID']}-start{restart}-rank{rank}.jsonl").open("w")
    hold_after = int(os.environ.get("HOLD_AFTER_STEP", "0")) if restart == 0 else 0
    drawn: list[Any] = []
    build, get = BatchBuilder.build, PlannedTraining.get_batch_samples

    def recording(builder: BatchBuilder, draws: Any) -> Any:
        drawn.append([list(draw) for draw in draws])
        return build(builder, draws)

    def holding(trainer: PlannedTraining, *arguments: Any) -> Any:
        step = trainer.state.global_step
        if hold_after and step == hold_after:
            (folder / f"held-rank{rank}").touch()
            while not trainer.stopper.wanted:
                time.sleep(0.05)
        drawn.clear()
        got = get(trainer, *arguments)
        record.write(json.dumps({"step": step + 1, "rank": int(rank), "draws": drawn}) + "\n")
        record.flush()
        return got

    BatchBuilder.build = recording  # type: ignore[method-assign]
    PlannedTraining.get_batch_samples = holding  # type: ignore[method-assign]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
