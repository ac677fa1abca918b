#!/usr/bin/env bash
# Two nodes of 8 H100, one process per node:
#     sbatch launch/slurm.sh --config qwen2.5-14b-gad --run_dir=/shared/runs/mine
# The run directory and GAD_JAX_CACHE have to be on storage that both nodes share. The same command
# resumes; Slurm's SIGTERM before the time limit makes the run save first.
#SBATCH --job-name=gad_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
# shellcheck source=launch/environment.sh
source launch/environment.sh

# jax finds the coordinator and the number of processes in Slurm's variables.
exec srun --kill-on-bad-exit=1 python -m gad_jax.train "$@"
