"""What the fork server of ``rank_runs`` imports, once for all ranks. It must start no thread."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

import accelerate  # noqa: F401
import deepspeed  # noqa: F401

import recipes.dpo
import recipes.pretrain
import recipes.sft  # noqa: F401
import tests.rank_runs  # noqa: F401
