#!/bin/bash
# Two nodes of eight GPUs:  sbatch docs/slurm.sh configs/reasonbrain_flux_qwen.yaml runs/flux
#SBATCH --job-name=reasonbrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
# Five minutes before the time limit, and on preemption, every process gets SIGTERM: the run writes a checkpoint and
# ends. The requeued job resumes from it.
set -euo pipefail
config=$1 run=$2
shift 2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun .venv/bin/torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
    --rdzv_backend c10d --rdzv_endpoint "$head:29500" --rdzv_id "$SLURM_JOB_ID" \
    train/train.py --config "$config" --deepspeed configs/deepspeed/zero3.json -o "$run" "$@"
