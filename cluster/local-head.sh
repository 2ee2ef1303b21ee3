#!/usr/bin/env bash
# A Ray head on this machine, for `ray job submit`: loopback dashboard, token auth, everything overridable.
# It runs in the foreground; stop it with Ctrl-C or SIGTERM.
#
#   cluster/local-head.sh &
#   export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
#   ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \
#     python jobs/pipeline.py --recipe jobs/recipes/tiny.yaml --place cluster/places/laptop.yaml \
#     --set store=$PWD/store ...                     # README.md has the whole command
set -euo pipefail
# The token file would otherwise be readable by everybody.
umask 077

: "${RAY_PORT:=6379}"
: "${RAY_DASHBOARD_PORT:=8265}"
: "${RAY_METRICS_PORT:=8080}"
# Jobs are taken through it: a second head on this machine needs another one.
: "${RAY_AGENT_PORT:=52365}"
# Sockets lie below it and their paths may have 107 bytes, so it is short.
: "${RAY_TEMP_DIR:=/tmp/ucotron-ray}"
: "${RAY_SPILL_DIR:=${RAY_TEMP_DIR}/spill}"
: "${RAY_OBJECT_STORE_BYTES:=1000000000}"
: "${RAY_NUM_CPUS:=$(nproc)}"

export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
# Ray gives its workers a niceness of 15: beside anything else on this machine they would get a thirtieth of it.
export RAY_worker_niceness="${RAY_worker_niceness:-0}"
# `ray job stop` gives a driver 3 s by default, too little to write a checkpoint's record.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-30}"

mkdir -p "${RAY_TEMP_DIR}" "${RAY_SPILL_DIR}"
ray get-auth-token --generate >/dev/null
ulimit -n 65536 2>/dev/null || echo "local-head: the limit of open files stays at $(ulimit -n)" >&2

exec ray start --head --block \
  --node-ip-address=127.0.0.1 \
  --port="${RAY_PORT}" \
  --dashboard-host=127.0.0.1 \
  --dashboard-port="${RAY_DASHBOARD_PORT}" \
  --metrics-export-port="${RAY_METRICS_PORT}" \
  --dashboard-agent-listen-port="${RAY_AGENT_PORT}" \
  --temp-dir="${RAY_TEMP_DIR}" \
  --object-spilling-directory="${RAY_SPILL_DIR}" \
  --object-store-memory="${RAY_OBJECT_STORE_BYTES}" \
  --num-cpus="${RAY_NUM_CPUS}" \
  --disable-usage-stats
