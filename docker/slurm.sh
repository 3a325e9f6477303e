#!/usr/bin/env bash
# An experiment on Slurm: Ray on the nodes of the allocation, this job's first node drives.
#   sbatch --nodes=2 --cpus-per-task=8 --time=04:00:00 docker/slurm.sh configs/ablation_hgs.yaml [options of fsg launch]
# Before the time limit each training keeps a checkpoint and the job puts itself back into the queue; when it runs again,
# it goes on from the ledger, until nothing is left. `scancel --signal=TERM --batch JOB` stops it at a checkpoint for good.
#
# PYTHON is the interpreter that has fsg (python3); it, the spec and the results lie where all nodes see them.
#SBATCH --job-name=fsg
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail
python=${PYTHON:-python3}
[ $# -ge 1 ] || { echo "slurm.sh: no spec (expected sbatch … slurm.sh SPEC [options of fsg launch])" >&2; exit 2; }
[ -n "${SLURM_JOB_ID:-}" ] || { echo "slurm.sh: not in a Slurm job (expected sbatch … slurm.sh SPEC)" >&2; exit 2; }

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Where the nodes reach the first one: by its name, unless FSG_HEAD_ADDRESS says better.
address=${FSG_HEAD_ADDRESS:-$(getent ahostsv4 "$first" | awk 'NR == 1 {print $1}' || true)}
[ -n "$address" ] || { echo "slurm.sh: the name $first means nothing here (expected FSG_HEAD_ADDRESS)" >&2; exit 2; }
# Two jobs may share a node: each has ports of its own. Whoever speaks to this Ray needs the job's token.
port=$((20000 + SLURM_JOB_ID % 10000))
RAY_AUTH_TOKEN=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=1000 RAY_health_check_failure_threshold=3
find='import importlib.util as u; print(*u.find_spec("orchestration").submodule_search_locations)'
home=$("$python" -c "$find" 2>/dev/null) ||
  { echo "slurm.sh: $python has no fsg (expected PYTHON=…, the one that it is installed for)" >&2; exit 2; }
scratch=$(mktemp -d /tmp/fsg-XXXXXX)
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch  # for what the trainings leave there, too

driver= requeue=
stop() { [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null || true; }
clear_up() {
  exec 9>&-
  wait "$putting_away" || true
}
trap 'requeue=yes; stop' USR1
trap stop TERM

node() {  # node COMMAND…: Ray on one node of the allocation, as long as this job runs
  srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --mem=0 --export=ALL "$@" \
    >>"$scratch/ray.txt" 2>&1 9>&- &
}

# Ray opens its folders to everyone: on each node they lie below one that is this user's alone, made before Ray comes.
# shellcheck disable=SC2016
srun --overlap --ntasks-per-node=1 bash -c 'mkdir -m 700 "$0" 2>/dev/null || [ -O "$0" ]' "$scratch" ||
  { echo "slurm.sh: $scratch cannot be made on every node (expected room in /tmp)" >&2; exit 2; }

# Whatever ends this script, the end of the pipe that it holds is closed. Then a process on each node, whose input that is,
# kills those whose environment names the folder, and removes it. It is not to be named in its own, nor in its srun's.
exec 9> >(exec env -u TMPDIR srun --overlap --ntasks-per-node=1 --cpus-per-task=1 --mem=0 \
  "$python" -I -S "$home/util/put_away.py" "$scratch" --stay >/dev/null 2>&1)
putting_away=$!
trap clear_up EXIT

ray=("$python" -m ray.scripts.scripts start --block --disable-usage-stats --num-cpus="${SLURM_CPUS_PER_TASK:-1}")
ray+=(--object-store-memory="${OBJECT_STORE_BYTES:-200000000}")
node --nodelist="$first" "${ray[@]}" --head --node-ip-address="$address" --port="$port" --include-dashboard=false \
  --temp-dir="$scratch"
for _ in $(seq 240); do
  (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null && break
  sleep 0.5
done
for other in $(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n +2); do
  node --nodelist="$other" "${ray[@]}" --address="$address:$port"
done

status=130
if [ -z "$requeue" ]; then
  "$python" -m orchestration.cli launch "$@" --address "$address:$port" 9>&- &
  driver=$!
  while :; do  # a signal ends the waiting, not the driver
    status=0
    wait "$driver" || status=$?
    kill -0 "$driver" 2>/dev/null || break
  done
fi
clear_up
if [ -n "$requeue" ] && [ "$status" -eq 130 ]; then
  echo "slurm.sh: the time limit is near; job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
