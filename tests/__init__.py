"""Tests; what every process of theirs must have said before it imports anything else."""

import logging

# On CPUs with bf16 instructions it says when it is imported that it lacks an optional package, and pytest shows what
# was said so early after its summary.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
