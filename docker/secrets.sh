#!/usr/bin/env bash
# Writes docker/.env with fresh secrets, for its owner's eyes alone. What is there already stays.
set -euo pipefail
umask 077
file=$(dirname "$0")/.env
touch "$file"
secret() { grep -q "^$1=" "$file" || echo "$1=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >>"$file"; }
secret RAY_AUTH_TOKEN
secret MLFLOW_PASSWORD
secret POSTGRES_PASSWORD
secret MLFLOW_SESSION_KEY
