#!/usr/bin/env bash
# Installs Slurm and munge from Debian's packages for tests/slurm/, as root; starts no service. Does nothing where they are.
set -euo pipefail
if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then exit 0; fi
command -v apt-get >/dev/null || { echo "no apt-get here to install slurm-wlm and munge with" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "not root: slurm-wlm and munge cannot be installed" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
# Debian's packages would start services; tests start their own daemons.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
