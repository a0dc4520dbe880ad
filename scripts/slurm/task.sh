#!/usr/bin/env bash
# One task of a job's step, started by srun: becomes one rank, or the torchrun agent of one node.
# Slurm signals every process of a step. SIGUSR1 is for those that listen; it would end all others, the agent included.
trap "" USR1
if [ "$LAUNCHER" = srun ]; then
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$PROCESSES_PER_NODE
  exec "$PYTHON" "$@"
fi
# The agent would give its ranks 30 s after a SIGTERM that they have heard themselves.
trap "" TERM
export PYTHON_EXEC=$PYTHON # of the ranks
exec "$PYTHON" scripts/slurm/torchrun_node.py --signals-to-handle SIGHUP,SIGQUIT \
  --nnodes "$SLURM_JOB_NUM_NODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$PROCESSES_PER_NODE" \
  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" "$@"
