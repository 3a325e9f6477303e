#!/bin/sh
# A node of the Ray cluster: `ray-node.sh head` or `ray-node.sh worker`. Whoever speaks to it needs RAY_AUTH_TOKEN.
set -eu
: "${RAY_AUTH_TOKEN:?is not set: docker/secrets.sh makes it}"
common="--block --disable-usage-stats --object-store-memory=${OBJECT_STORE_BYTES:-100000000}"
case ${1:-} in
  head)
    # No CPUs of its own: what trains are the workers.
    # shellcheck disable=SC2086
    exec ray start --head --port=6379 --dashboard-host=0.0.0.0 --dashboard-port=8265 --num-cpus=0 --num-gpus=0 $common ;;
  worker)
    # shellcheck disable=SC2086
    exec ray start --address=ray-head:6379 --num-cpus="${WORKER_CPUS:-1}" $common ;;
  *) echo "ray-node.sh: head or worker" >&2; exit 2 ;;
esac
