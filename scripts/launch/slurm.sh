#!/usr/bin/env bash
# A run on the GPUs of several SLURM nodes. Adapt the #SBATCH lines; then, from the repository, which all nodes must see:
#
#   sbatch scripts/launch/slurm.sh scripts/train.py --config=configs/imagenet64_base.py --workdir=runs/imagenet64/base
#
#SBATCH --job-name=diffusion_distillation
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
# one process for each GPU, which is how JAX divides them on SLURM
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# five minutes before the time is up the run saves and stops
#SBATCH --signal=TERM@300
# as many jobs, one after the other, as the run may take; each goes on where the last one stopped
#SBATCH --array=1-7%1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A.log
set -euo pipefail

# When a process dies the others stop by themselves, once what they were saving is written.
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" "$@"
