#!/usr/bin/env bash
# Set-up, then lint, types, import contracts and the whole CPU test suite. Arguments go to pytest.
#   bash scripts/test.sh            # everything
#   bash scripts/test.sh -k plan    # some
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
echo "== Lint"
ruff format --check --quiet . || stop "files are not formatted; run: .venv/bin/ruff format ."
ruff check --quiet . || stop "ruff found problems (above)."
echo "== Types"
mypy || stop "mypy found problems (above)."
echo "== Import contracts"
lint-imports --no-cache >.venv/lint-imports.log || { cat .venv/lint-imports.log; stop "an import runs upwards (above)."; }
echo "== Tests"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
exec python -m pytest -n 2 --dist loadgroup "$@"
