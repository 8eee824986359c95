# Every target installs what it needs into $(VENV) first; nothing needs root, Docker or a compiler.
PYTHON ?= python3
VENV ?= .venv
# On Linux without a GPU, spare yourself gigabytes of CUDA: see README.md, "Installing".
TORCH_PIP_ARGS ?=
# make run QUICK=1 proves the plumbing in three minutes; ARGS goes to `vqa-grpo run`.
QUICK ?=
ARGS ?=

BIN := $(VENV)/bin
CONSTRAINTS := images/constraints.txt
TORCH := $(shell grep '^torch==' $(CONSTRAINTS))
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# The images; see images/README.md.
DOCKER ?= docker
REGISTRY ?= ghcr.io/vqa-grpo
BUILD_ARGS ?=
TRAINER_ARGS ?=
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/vqa_grpo/__init__.py)
LOCK := $(BIN)/uv pip compile -q --no-header --no-annotate --generate-hashes --only-binary :all: \
  --python-version 3.11 --python-platform x86_64-manylinux_2_28 -c $(CONSTRAINTS)

.PHONY: help install run test test-full lint clean prove-learning bench drills images image-steps image-trainer \
  push-images lock

install: $(VENV)/.local

help:
	@echo "make install | run [QUICK=1] [ARGS='--set …'] | test | test-full | lint | images | bench | drills |"
	@echo "     prove-learning | clean; see README.md"

run: $(VENV)/.local
	@$(BIN)/vqa-grpo run $(if $(filter-out 0 no false,$(QUICK)),--quick) $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-full: $(VENV)/.dev
	$(BIN)/python -m pytest -m full --timeout 1800

# import-linter reads packages from disk, and only an installed copy has components/ and pipelines/ in their place.
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict manifests
	rm -rf build/lint && $(PIP) install --no-deps --target build/lint .
	PYTHONPATH=build/lint $(BIN)/lint-imports --no-cache

images: image-steps image-trainer

image-steps:
	$(DOCKER) build $(BUILD_ARGS) --build-arg REVISION=$$(git rev-parse HEAD) \
	  -f images/steps/Dockerfile -t $(REGISTRY)/steps:$(VERSION) .

image-trainer:
	$(DOCKER) build $(BUILD_ARGS) $(TRAINER_ARGS) --build-arg REVISION=$$(git rev-parse HEAD) \
	  -f images/trainer/Dockerfile -t $(REGISTRY)/trainer:$(VERSION) .

# What was pushed is recorded by digest, and compile names it so. Podman tells while it pushes: what it holds itself has
# other digests (https://github.com/containers/podman/issues/14779).
push-images: images
	push() { image="$(REGISTRY)/$$1"; \
	  if $(DOCKER) push --help 2>&1 | grep -q -e --digestfile; then \
	    $(DOCKER) push -q --digestfile images/.digest "$$image:$(VERSION)" >&2 && echo "$$image@$$(cat images/.digest)"; \
	  else \
	    $(DOCKER) push -q "$$image:$(VERSION)" >&2 && \
	    $(DOCKER) image inspect --format '{{join .RepoDigests "\n"}}' "$$image:$(VERSION)"; \
	  fi | grep -F -m 1 "$$image@sha256:" || { \
	    echo "error: $(DOCKER) tells no digest of $$image: was it pushed? is REGISTRY right?" >&2; exit 1; }; }; \
	steps=$$(push steps) && trainer=$$(push trainer) && rm -f images/.digest && \
	printf '{\n "steps": "%s",\n "trainer": "%s"\n}\n' "$$steps" "$$trainer" > images/digests.json

# Locks follow pyproject.toml and images/constraints.txt. TORCH_LOCK_ARGS says where uv finds torch's CPU build, as
# "--index URL" or "--find-links DIR".
lock: $(VENV)/.dev
	echo setuptools | $(LOCK) - -o images/build.lock
	echo kfp | $(LOCK) --no-deps - -o images/kfp.lock
	$(LOCK) --extra steps pyproject.toml -o images/steps/requirements.lock
	$(LOCK) --extra trainer --override images/trainer/without-torch.txt --no-binary deepspeed \
	  --no-emit-package deepspeed pyproject.toml -o images/trainer/requirements.lock
	echo deepspeed | $(LOCK) --no-deps --no-binary deepspeed - -o images/trainer/deepspeed.lock
	echo torch | $(LOCK) - -o images/trainer/torch-cuda.lock
	echo 'cuda-toolkit[nvcc,cccl]' | $(LOCK) -c images/trainer/torch-cuda.lock - -o images/trainer/toolkit-cuda.lock
	echo torch | $(LOCK) $(TORCH_LOCK_ARGS) - -o images/trainer/torch-cpu.lock
	! grep -nE 'https?://|--(index|extra|find)' images/*.lock images/*/*.lock

# Under 45 minutes on two cores; stopped and started again, it goes on. The table is runs/prove-learning/table.md.
prove-learning: $(VENV)/.local
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/prove_learning.py

# By hand: what is measured, each in a process of its own, and what is killed, cut off and corrupted for hours.
bench: $(VENV)/.dev
	for each in $(wildcard tests/benchmarks/bench_*.py tests/benchmarks/fuzz_*.py); do \
	  OMP_NUM_THREADS=1 $(BIN)/python $$each || exit 1; done

drills: $(VENV)/.dev
	$(BIN)/python tests/drills/kill_trainer.py --out runs/drills/kill_trainer
	$(BIN)/python tests/drills/two_nodes.py --out runs/drills/two_nodes

clean:
	rm -rf build dist $(VENV) src/*.egg-info

# torch goes first and alone, so that nothing after it can choose another build.
$(VENV)/.torch: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11: make PYTHON=python3.11 …" >&2; exit 78; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) into $(VENV)"
	@$(PIP) install $(TORCH) $(TORCH_PIP_ARGS)
	@touch $@

$(VENV)/.local: $(VENV)/.torch pyproject.toml
	@echo "installing vqa-grpo into $(VENV), about two minutes"
	@$(PIP) install -c $(CONSTRAINTS) -e '.[local]'
	@touch $@

$(VENV)/.dev: $(VENV)/.local
	@echo "installing what the tests and checks need"
	@$(PIP) install -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@
