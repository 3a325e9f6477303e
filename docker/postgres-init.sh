#!/bin/sh
# Run by PostgreSQL's image when the volume is new: a database for MLflow's users beside the one for its runs.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --username mlflow --dbname mlflow --command "CREATE DATABASE users"
