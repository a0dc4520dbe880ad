# Sourced by quickstart.sh and test.sh: goes to the project's root and makes .venv hold the pinned dependencies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() { # one clear sentence, then out
  echo "STOP: $*" >&2
  exit 1
}

[ "$(uname -s)" = Linux ] || stop "this script is for Linux; this is $(uname -s)."

find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  stop "no Python 3.11 or newer with venv found; install one (Debian: apt-get install python3 python3-venv)."
}

if [ ! -x .venv/bin/python ]; then
  echo "== Making .venv"
  "$(find_python)" -m venv .venv
fi
PYTHON="$PWD/.venv/bin/python"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || stop ".venv holds an older Python than 3.11; remove .venv and start again."

stamp=".venv/.installed-$(cat pyproject.toml scripts/constraints.txt | sha256sum | cut -c1-16)"
if [ ! -f "$stamp" ]; then
  echo "== Installing the pinned dependencies into .venv (some minutes; log: .venv/install.log)"
  # DeepSpeed's own build asks for torch, so torch comes first.
  for what in "torch==2.13.0" "-e .[dev]"; do
    # shellcheck disable=SC2086
    "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off -c scripts/constraints.txt $what 2>&1 |
      tee -a .venv/install.log | sed -u -n 's/^\(Collecting\|Downloading\|Building wheel\|Successfully\) /   \1 /p' ||
      stop "pip could not install '$what'; the end of .venv/install.log says why: $(tail -n 1 .venv/install.log)"
  done
  rm -f .venv/.installed-*
  touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
# DeepSpeed warns at import where it finds no accelerator by itself.
command -v nvidia-smi >/dev/null || export DS_ACCELERATOR=cpu
export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
