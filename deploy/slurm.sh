#!/usr/bin/env bash
# Trains on SLURM, a process for each GPU, and goes on by itself when the time is over:
#
#   sbatch deploy/slurm.sh --config configs/voc.py:183 --workdir SHARED/voc183
#   sbatch --nodes=2 deploy/slurm.sh --config configs/cityscapes.py:186 --workdir SHARED/city186
#
# Arguments are those of launch.py, workdir and data on storage that all nodes see. Options before
# the script's name win over those below. PYTHON names another interpreter.
#SBATCH --job-name=gta-jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [ $# -eq 0 ]; then
  echo 'error: no config; sbatch deploy/slurm.sh --config configs/voc.py:183 --workdir DIR' >&2
  exit 2
fi
# SLURM runs a copy of this script from a folder of its own.
cd "${SLURM_SUBMIT_DIR:?start it by sbatch, in the folder that holds launch.py}"

# srun asks for one core a task unless it is told again.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-8}"
status=0
srun --kill-on-bad-exit=0 "${PYTHON:-python}" launch.py --distributed auto "$@" || status=$?
# 75: the signal stopped the run, which is saved. Once more from there.
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
