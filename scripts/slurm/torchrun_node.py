"""torchrun, except that its exit code is that of the rank that ended first: 75 means saved, start me again."""

from __future__ import annotations

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    try:
        run.main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        print(error, file=sys.stderr)
        return int(first.exitcode) if first.exitcode > 0 else 128 - int(first.exitcode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
