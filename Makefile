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

.PHONY: help install run test test-full lint clean prove-learning bench drills images

install: $(VENV)/.local

help:
	@echo "make install | run [QUICK=1] [ARGS='--set …'] | test | test-full | lint | prove-learning | clean; see README.md"

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
	rm -rf build/lint && $(PIP) install --no-deps --target build/lint .
	PYTHONPATH=build/lint $(BIN)/lint-imports --no-cache

# Under 45 minutes on two cores; stopped and started again, it goes on. The table is runs/prove-learning/table.md.
prove-learning: $(VENV)/.local
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/prove_learning.py

bench drills images:
	@echo "make $@ is not in this version yet" >&2; exit 2

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
