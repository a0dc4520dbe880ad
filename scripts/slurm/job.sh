# Sourced by batch scripts (the .sbatch files here, and what scripts/submit.py writes): run_stage STAGE OVERRIDES...
#
# Runs a recipe on all nodes of a Slurm job and requeues the job when it has to go on later:
#   exit code 75: the run saved a checkpoint after SIGTERM (preemption) or SIGUSR1 (this script's, before the time limit)
#   it was told to stop but did not get that far (it was still starting, or hung): the last checkpoint counts
#   something broke that nobody foresaw (70, or a process killed: a GPU, the network, a node, a bug): at most MAX_FAILURES
#     times a job. The count is kept in the job's comment
# A cancelled job, a mistake in the settings (2) and an error that says how to mend it (1) are never requeued. When the
# node of this script vanishes, Slurm requeues the job by itself (--requeue).
#
# Settings, all by environment:
#   PYTHON              interpreter on every node (default: .venv/bin/python of the project)
#   LAUNCHER            srun: one task a process (default); torchrun: one task a node
#   PROCESSES_PER_NODE  default: the GPUs of a node, or 1
#   SAVE_SECONDS        between our SIGUSR1 and requeueing anyway; less than the 300 of --signal=B:USR1@300 (default 240)
#   MAX_RESTARTS        requeue at most so often (default 200)
#   MAX_FAILURES        of these, after unforeseen failures (default 3)
#   CONTAINER, CONTAINER_RUNTIME   image to run in, by pyxis (default) or apptainer

job_field() { # job_field NAME: of this job, as scontrol shows it
  scontrol --oneliner show job "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

address_of_first_node() { # node names need not resolve on other nodes: Slurm knows the address
  local node address
  node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  address=$(scontrol --oneliner show node "$node" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')
  echo "${address:-$node}"
}

set_defaults() {
  export PYTHON=${PYTHON:-$PWD/.venv/bin/python} LAUNCHER=${LAUNCHER:-srun}
  export PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
  MASTER_ADDR=$(address_of_first_node)
  # A port of its own for every job and every start of it: the last start's may still be closing.
  MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 10000))
  export MASTER_ADDR MASTER_PORT
  # A rank that fails takes its process down, so that nobody waits for it: 3 does not wait for NCCL to clean up.
  export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}
  # The flight recorder: the last collectives of each rank, written down when one times out. torch 2.13 has both names.
  export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-20000}
  export TORCH_NCCL_TRACE_BUFFER_SIZE=${TORCH_NCCL_TRACE_BUFFER_SIZE:-$TORCH_FR_BUFFER_SIZE}
  export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
  export TORCH_NCCL_DEBUG_INFO_TEMP_FILE=${TORCH_NCCL_DEBUG_INFO_TEMP_FILE:-${FLIGHT_FOLDER:-/tmp}/nccl_trace_${SLURM_JOB_ID}_rank_}
  # A process whose NCCL watchdog itself is stuck ends after this long. More than any timeout of a collective.
  export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=${TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC:-1200}
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
}

requeue() { # requeue WHY: this job, if it may; does not come back
  local state restarts=${SLURM_RESTART_COUNT:-0}
  state=$(job_field JobState)
  if [ "$state" != RUNNING ]; then
    echo "== $1; job $SLURM_JOB_ID is $state, so it is not requeued here"
    exit 75
  fi
  if [ "$restarts" -ge "${MAX_RESTARTS:-200}" ]; then
    echo "== $1; not requeued: this was restart $restarts of at most MAX_RESTARTS=${MAX_RESTARTS:-200}" >&2
    exit 75
  fi
  echo "== $1; requeueing job $SLURM_JOB_ID (restart $((restarts + 1)))"
  trap - TERM USR1
  scontrol requeue "$SLURM_JOB_ID" || { echo "== scontrol requeue failed: submit the same command again" >&2; exit 75; }
  sleep 600 & wait # Slurm ends this script
  exit 75
}

stop_step() { # the time is nearly up: ask the ranks to save; what has not saved by then is ended by requeueing
  told="its time is nearly up"
  echo "== SIGUSR1: $told; asking all ranks to save and stop"
  kill -USR1 "$step" 2>/dev/null
  (
    trap 'kill "$nap"; exit' TERM
    sleep "${SAVE_SECONDS:-240}" &
    nap=$!
    wait "$nap"
    kill -0 "$step" 2>/dev/null && scontrol requeue "$SLURM_JOB_ID" &&
      echo "== Not stopped ${SAVE_SECONDS:-240} s after SIGUSR1: requeued; the last checkpoint counts"
  ) &
  reminder=$!
}

run_stage() { # run_stage STAGE OVERRIDES...
  local stage=$1 code options=()
  shift
  set_defaults
  told="" reminder=""
  local tasks_per_node cores=${SLURM_CPUS_PER_TASK:-}
  case "$LAUNCHER" in
    srun) tasks_per_node=$PROCESSES_PER_NODE ;;
    torchrun) tasks_per_node=1 cores=$((cores * PROCESSES_PER_NODE)) ;;
    *) echo "STOP: LAUNCHER=$LAUNCHER; known: srun, torchrun" >&2; exit 2 ;;
  esac
  options=(--ntasks="$((SLURM_JOB_NUM_NODES * tasks_per_node))" --ntasks-per-node="$tasks_per_node")
  [ "${cores:-0}" = 0 ] || options+=(--cpus-per-task="$cores") # srun does not take this over from sbatch
  local task=(bash scripts/slurm/task.sh "recipes/$stage.py" "$@")
  if [ -n "${CONTAINER:-}" ]; then
    case "${CONTAINER_RUNTIME:-pyxis}" in
      pyxis) options+=(--container-image="$CONTAINER" --container-mounts="$PWD:$PWD" --container-workdir="$PWD") ;;
      apptainer) task=(apptainer exec --nv --pwd "$PWD" --bind "$PWD" "$CONTAINER" "${task[@]}") ;;
      *) echo "STOP: CONTAINER_RUNTIME=$CONTAINER_RUNTIME; known: pyxis, apptainer" >&2; exit 2 ;;
    esac
  fi
  echo "== Job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}: $stage on $SLURM_JOB_NODELIST," \
    "$PROCESSES_PER_NODE processes a node by $LAUNCHER, first node $MASTER_ADDR:$MASTER_PORT"
  trap stop_step USR1
  trap 'echo "== SIGTERM"' TERM
  # A rank that ends by a signal must not end the others before all have left the checkpoint's last barrier: --wait.
  srun --mpi=none --kill-on-bad-exit=0 --wait=60 --nodes="$SLURM_JOB_NUM_NODES" "${options[@]}" "${task[@]}" &
  step=$!
  while :; do
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break # else only a trap ended the waiting
  done
  [ -z "$reminder" ] || kill "$reminder" 2>/dev/null
  echo "== Ended with exit code $code"
  [ "$code" != 0 ] && [ "$code" != 2 ] || exit "$code"
  [ "$code" != 75 ] || requeue "The run is saved"
  [ -z "$told" ] || requeue "Told to stop because $told"
  case "$(job_field PreemptTime)" in
    "" | None) ;;
    *) requeue "Preempted before it could save" ;;
  esac
  if [ "$code" = 70 ] || { [ "$code" -ge 128 ] && [ "$code" != 130 ]; }; then
    local failures
    failures=$(job_field Comment | sed -n 's/^failures:\([0-9]*\)$/\1/p')
    failures=$((${failures:-0} + 1))
    if [ "$failures" -le "${MAX_FAILURES:-3}" ] && [ "$(job_field JobState)" = RUNNING ]; then
      scontrol update jobid="$SLURM_JOB_ID" comment="failures:$failures"
      requeue "Failed, time $failures of at most ${MAX_FAILURES:-3} that are tried again"
    fi
  fi
  exit "$code"
}
