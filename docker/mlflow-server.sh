#!/bin/sh
# MLflow's server, behind a password of its own; runs and users in PostgreSQL, artifacts on its volume.
set -eu
database=postgresql+psycopg2://mlflow:$POSTGRES_PASSWORD@postgres:5432
umask 077
cat > "$HOME/auth.ini" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $database/users
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
INI
export MLFLOW_AUTH_CONFIG_PATH="$HOME/auth.ini"
# In the environment, where the list of processes does not show it.
export MLFLOW_BACKEND_STORE_URI="$database/mlflow"
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 1 \
  --serve-artifacts --artifacts-destination /artifacts --default-artifact-root mlflow-artifacts:/ \
  --allowed-hosts "mlflow:5000,localhost:*,127.0.0.1:*"
