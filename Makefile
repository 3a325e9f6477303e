# Everything happens in .venv, made on first use from requirements.lock; PYTHON=python3.11 says by which Python.
PYTHON ?=
RESULTS ?= results
KILLS ?= 20
BIN := .venv/bin

.PHONY: help run test mutations test-slow test-browser test-cluster test-versions test-accelerator gpu cluster-up cluster-down lint types schema chaos bench-checkpoints bench-long-life bench bench-record \
  lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: .venv/.installed  ## the ablation of the gradient history on the embedded images, report and all
	$(BIN)/python orchestration/launch.py configs/ablation_hgs.yaml --results $(RESULTS)

test: .venv/.installed  ## the default suite
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-slow: .venv/.installed  ## what takes minutes: whole launches, kills and resumes, real CIFAR-10 where it is there
	$(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=10

test-cluster: .venv/.installed  ## containers, nodes that part and meet again, Slurm: as far as this machine has them
	$(BIN)/python -m pytest -q -m cluster --durations=0 tests/cluster

WORKERS ?= 2
cluster-up:  ## a Ray cluster of containers with MLflow: WORKERS=2, GPUS=1 on GPUs; see docs/cluster.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" docker/cluster.sh up $(WORKERS)

cluster-down:  ## stop it; its volumes stay
	@PATH="$(CURDIR)/$(BIN):$$PATH" docker/cluster.sh down

test-browser: .venv/.installed  ## MLflow's pages and Optuna's in a real browser, Debian's chromium; pictures in .ci/out/browser
	tests/browser/with_chromium $(BIN)/python -m pytest -q -m browser tests/browser

test-accelerator: .venv/.installed  ## what a GPU would refuse or wait for, on a simulated one; Triton's kernels, interpreted and compiled
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -m accelerator -n 2 --dist worksteal --durations=5 tests/accelerator
	$(BIN)/python tests/accelerator/compile_offline.py

# No .venv: the machine with the GPU has torch, numpy and pytest for this Python, and perhaps no network.
DEVICE ?= cuda
SECONDS ?= 480
gpu: PYTHON = python3
gpu:  ## on a GPU: its suite, the bench, epochs, in 8 minutes; wants torch, numpy and pytest alone. DEVICE=cpu: a dry run
	@$(PYTHON) -m benchmarks.gpu --device $(DEVICE) --seconds $(SECONDS)

test-versions: .venv/.installed  ## an experiment under the oldest and the newest Ray, MLflow, Optuna and pydantic supported
	$(BIN)/python -m pytest -q -m versions --durations=0 tests/versions

mutations: .venv/.installed  ## plant each mistake of tests/mutations.md in a copy, and see a test fail
	$(BIN)/python tests/mutate.py

lint: .venv/.installed  ## ruff, and its formatter as a check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed  ## mypy, strict
	$(BIN)/mypy

schema: .venv/.installed  ## write configs/spec.schema.json anew
	$(BIN)/fsg schema > configs/spec.schema.json

chaos: .venv/.installed  ## the quick ablation under random kills (KILLS=20), compared byte by byte with one in peace
	$(BIN)/python -m benchmarks.chaos --kills $(KILLS) --seed 0

bench-checkpoints: .venv/.installed  ## what a checkpoint costs, its size, and how soon a resumed cell trains again
	$(BIN)/python -m benchmarks.checkpoints

bench-long-life: .venv/.installed  ## what grows in a launch of 2,000 trainings: memory, descriptors, threads, files
	$(BIN)/python -m benchmarks.long_life

bench: .venv/.installed  ## ratios measured in one run; see docs/performance.md
	$(BIN)/python -m benchmarks

bench-record: .venv/.installed  ## the same, kept in benchmarks/recorded.json and docs/performance.md
	$(BIN)/python -m benchmarks --record

lock:  ## write requirements.lock anew from pyproject.toml
	rm -rf .venv-lock && $(or $(PYTHON),python3.11) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet '.[dev]'
	@# The CUDA libraries that torch's Linux build wants exist for Linux alone.
	.venv-lock/bin/pip freeze --exclude fsg | grep -v '^-e' \
	  | sed -E 's/^((nvidia-|cuda-|triton).*)$$/\1 ; sys_platform == "linux"/' > requirements.lock
	rm -rf .venv-lock

clean:  ## remove .venv and caches; results/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info

.venv/.installed: requirements.lock pyproject.toml
	@PYTHON='$(PYTHON)' ./setup.sh
