# Needs only Python >= 3.11, pip and make. PYTHON=python3.12 make setup picks another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.homeostat-setup
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# Debian's Python makes no venv with pip unless python3-venv is there; its own pip can fill one.
MAKE_VENV := $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { $(PYTHON) -m venv --clear --without-pip \
	$(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo screenshots test soak bench lint lock settings clean

help:  ## show this
	@grep -E '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /:/' | \
		awk -F: '{ printf "make %-11s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## make .venv with everything in it

# The lock is complete, so nothing is left to resolve (and old pips, which mistake an extra such as
# pandas[parquet] for a package without a hash, have nothing to mistake); `pip check` sees to it.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c '$(ENOUGH)' || { echo "Homeostat needs Python 3.11 or newer, and $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 && $(BIN)/python -c '$(ENOUGH)' || \
		{ rm -rf $(VENV); $(MAKE_VENV); }
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	@touch $@

demo: setup  ## a year of real flights, from the first training to the last promotion
	$(BIN)/homeostat demo

screenshots: setup  ## docs/page*.png (needs chromium; DEMO=folder of a finished demo, else a short one)
	$(BIN)/python .ci/screenshots.py $(DEMO)

# Files in their order: by their number of tests, the slowest files, which have few, would come last.
test: setup  ## all tests
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

soak: setup  ## faults and loads in full: hundreds of kills, a thousand swaps (see docs/faults.md)
	$(BIN)/python -m pytest -m soak -s $(ARGS)

bench: setup  ## serving beside its peers (Linux; needs wrk; see benchmarks/README.md)
	$(BIN)/python benchmarks/serving.py $(ARGS)

lint: setup  ## style, types, arrows between modules, workflows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/zizmor --offline .github/workflows

lock: setup  ## resolve requirements.lock and requirements.txt anew (needs uv; ARGS=--upgrade)
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
		--custom-compile-command "make lock" $(ARGS) pyproject.toml -o requirements.lock
	$(BIN)/python .ci/pins.py

settings: setup  ## write homeostat.toml and the pages of settings and verbs anew from the code
	$(BIN)/python -c 'from pathlib import Path; from homeostat.project import refresh; refresh(Path())'
	$(BIN)/python .ci/docs.py

clean:  ## remove .venv and what tools leave behind; data, models and reports stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
