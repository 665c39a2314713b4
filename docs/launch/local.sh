#!/usr/bin/env bash
# Train with several processes on this machine: PROCESSES=2 bash docs/launch/local.sh
# Each process gets one GPU. Set CPU_DEVICES=1 to try it without GPUs.
set -euo pipefail

PROCESSES=${PROCESSES:-2}
RECIPE=${RECIPE:-shapes}
RUN=${RUN:-runs/$RECIPE}

exec fcn-jax launch --processes "$PROCESSES" ${CPU_DEVICES:+--cpu-devices "$CPU_DEVICES"} \
  -- train "$RECIPE" --workdir "$RUN" "$@"
