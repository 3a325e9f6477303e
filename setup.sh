#!/usr/bin/env bash
# Makes .venv with exactly what requirements.lock says, by $PYTHON or the newest Python from 3.11 to 3.14 that is there.
# Installs with uv where that is there, otherwise with pip. What was broken off is taken up again.
set -euo pipefail
cd "$(dirname "$0")"
fits='import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
works='import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'

newest() {
  local python
  for python in "${PYTHON:-python3.14}" ${PYTHON:+""} python3.13 python3.12 python3.11 python3; do
    [ -n "$python" ] || break # $PYTHON, and no other
    if "$python" -c "$fits" > /dev/null 2>&1; then
      echo "$python"
      return
    fi
  done
  echo "${PYTHON:-no python3.11 to python3.14}: expected Python 3.11 to 3.14 with its venv module" \
    "(make PYTHON=/path/to/python3.11; on Debian: apt-get install python3-venv)" >&2
  return 1
}

# What pip is at, on a terminal in one line that moves; and what goes wrong.
progress() {
  awk -v of="$packages" -v moves="$moves" '
    function show(line) { printf moves ? "\r\033[K%s" : "%s\n", line; fflush() }
    /^(Collecting|Processing|Requirement already satisfied:) / {
      name = $1 == "Requirement" ? $4 : $2
      sub(".*/", "", name)
      if (!seen[name]++) show(sprintf("[%3d of about %d] %s", ++n, of, substr(name, 1, 50)))
    }
    /^Installing collected packages/ { show("writing them to .venv") }
    /^ERROR/ { show($0); if (moves) print "" }
    END { if (moves) printf "\r\033[K" }'
}

install() {
  if command -v uv > /dev/null; then
    uv pip install --python .venv/bin/python "$@" && return
    echo "uv could not install; pip tries."
  fi
  PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --disable-pip-version-check "$@" 2>&1 | progress
}

packages=$(grep -c . requirements.lock)
moves=
[ ! -t 1 ] || moves=1
if ! .venv/bin/python -c "$works" > /dev/null 2>&1; then
  python=$(newest)
  "$python" -m venv --clear .venv
fi
echo "Setting up .venv with $(.venv/bin/python --version): $packages packages, about 7 GB with torch's CUDA libraries."
install -r requirements.lock
install --no-deps --no-build-isolation -e .
touch .venv/.installed
echo "Done. Everything is in .venv."
