#!/usr/bin/env bash
# Run on the GPUs of several SLURM nodes. Adapt the #SBATCH lines. All nodes must see the repository; run from its root:
#
#   sbatch scripts/launch/slurm.sh scripts/train.py --config=configs/imagenet64_base.py --workdir=runs/imagenet64/base
#
#SBATCH --job-name=diffusion_distillation
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
# One process per GPU, as JAX expects on SLURM.
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Save and stop five minutes before the time limit.
#SBATCH --signal=TERM@300
# Run up to 7 jobs, one after another. Each resumes where the previous one stopped.
#SBATCH --array=1-7%1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A.log
set -euo pipefail

# When a process dies, the others finish saving and stop by themselves.
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" "$@"
