#!/bin/bash
# Train on all GPUs of several nodes:
#
#   sbatch examples/slurm/several_nodes.sh src/configs/sam2.1_hiera_base_plus_mope.yaml --set output_dir=experiments/mine
#
# Submit it from the repository, which all nodes must see (code, data and output_dir), with the virtual environment
# activated. Five minutes before its time is up, and when it is preempted, the run finishes its step and saves it; then
# the job is queued again, and goes on from there.
#SBATCH --job-name=sam2-mope
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
#SBATCH --signal=B:TERM@300
set -u

if [ $# -eq 0 ]; then
    echo "usage: sbatch $0 CONFIG.yaml [options of train.py]" >&2
    exit 2
fi
config=$1
shift

export OMP_NUM_THREADS=1
first=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?}" | head -n 1)
srun --kill-on-bad-exit=1 torchrun --nnodes="${SLURM_NNODES:?}" --nproc_per_node="${SLURM_GPUS_ON_NODE:?}" \
    --rdzv_backend=c10d --rdzv_id="${SLURM_JOB_ID:?}" --rdzv_endpoint="$first:29500" \
    train.py --config "$config" --resume auto "$@" &
run=$!

# torchrun passes the signal on to all processes, each of which stops after the same step
stopped=
trap 'stopped=yes; kill -TERM "$run"' TERM
wait "$run"
status=$?
if [ -n "$stopped" ]; then
    wait "$run" # for the step to be finished and saved
    status=$?
    if [ "$status" -ne 0 ]; then
        scontrol requeue "${SLURM_JOB_ID:?}"
        exit 0
    fi
fi
exit "$status"
