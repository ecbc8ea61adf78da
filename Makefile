# The two commands are `make run` and `make test`; both set everything up first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.trapline-stamp
PYTEST ?= $(BIN)/python -m pytest
RUN    ?=

.PHONY: setup run test lint size bench clean help

help:
	@echo "make run     boot Debian's arm64 kernel to a shell under Trapline (Ctrl-A x quits)"
	@echo "make test    run the tests; ARGS=--slow: also those that take minutes each"
	@echo "make lint    ruff and mypy"
	@echo "make size    lines per package, largest files, budgets"
	@echo "make bench   measure against qemu-system-aarch64, write docs/PERFORMANCE.md"
	@echo "make clean   remove caches and the virtual environment"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "CPython 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# RUN adds flags, for example: make run RUN="--cpus 4 --mem 1G"
run: setup
	$(BIN)/trapline guest $(RUN)

test: setup
	$(PYTEST) tests -q $(ARGS)

lint: setup
	$(BIN)/ruff check trapline tests tools
	$(BIN)/mypy

size: setup
	$(BIN)/python tools/size.py

# ARGS selects, for example: make bench ARGS="--only sieve,boot --runs 1 --peer none"
bench: setup
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m trapline.ui.bench $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find trapline tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
