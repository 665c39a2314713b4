#!/usr/bin/env bash
# Train on all hosts of a Cloud TPU slice: TPU=NAME ZONE=ZONE bash docs/launch/tpu_vm.sh
# The same command runs on each host. JAX asks the metadata server for the other ones.
set -euo pipefail

: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
RECIPE=${RECIPE:-camvid}
DATA=${DATA:-/mnt/data/$RECIPE}
# A folder that all hosts share, such as a mounted Filestore (NFS).
RUN=${RUN:-/mnt/runs/$RECIPE}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$1"
}

on_all_hosts "pip install -q 'fcn-jax[tpu]'"
on_all_hosts "fcn-jax train '$RECIPE' --data '$DATA' --workdir '$RUN'"
