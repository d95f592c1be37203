#!/usr/bin/env bash
# Run on all workers of a TPU VM or pod slice, from your own machine:
#
#   export TPU=my-pod ZONE=us-central2-b
#   scripts/launch/tpu_vm.sh setup <URL of your copy of the repository>
#   scripts/launch/tpu_vm.sh start scripts/train.py --config=configs/imagenet64_base.py --workdir=/mnt/shared/imagenet64
#   scripts/launch/tpu_vm.sh log     # what worker 0 prints
#   scripts/launch/tpu_vm.sh stop    # saves and stops; the same `start` command resumes
#
# Workers need Python 3.11 or newer with venv, and a shared file system (Filestore, NFS) for --workdir.
set -euo pipefail
: "${TPU:?the name of the TPU VM}" "${ZONE:?the zone it is in}"

on_worker() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

case "${1:-}" in
  setup)
    on_worker all "git clone $(printf '%q' "$2") diffusion_distillation && cd diffusion_distillation &&
      make install && .venv/bin/pip install --upgrade 'jax[tpu]'"
    ;;
  start)
    on_worker all "cd diffusion_distillation || exit
      nohup .venv/bin/python $(printf '%q ' "${@:2}")> run.log 2>&1 < /dev/null &"
    ;;
  log) on_worker 0 "tail -n 50 -f diffusion_distillation/run.log" ;;
  stop) on_worker all "pkill -TERM -f '[.]venv/bin/python scripts/'" ;;
  *)
    echo "usage: TPU=... ZONE=... $0 setup URL | start SCRIPT FLAGS... | log | stop" >&2
    exit 2
    ;;
esac
