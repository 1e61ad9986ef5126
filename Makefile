# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all their set-up (tools/setup_env.sh), versions from requirements/.

VENV ?= .venv
# The Python that makes VENV; empty: python3, or what VENV holds already.
PYTHON ?=
# More arguments for pytest, the demos or docs-check: make test ARGS="tests/data -k palette"
ARGS ?=
# Processes of the tests: 0 is pytest by itself, for a debugger
WORKERS ?= 2

SETUP = @bash tools/setup_env.sh "$(VENV)" "$(PYTHON)"
RUN = "$(VENV)/bin/python"
# a file's tests in one process: what they import and share is made once
SPREAD = -n $(WORKERS) --dist loadfile

.PHONY: help install demo web test test-fast env docs-check lint format clean

help:
	@echo "make install     set up without MinkowskiEngine, and no more"
	@echo "make demo        set up without MinkowskiEngine; train, compare, draw: output/demo/"
	@echo "make web         set up the same and gradio; the web demo, at http://127.0.0.1:7860"
	@echo "make test        set up with MinkowskiEngine; run all tests"
	@echo "make test-fast   set up without MinkowskiEngine; run the tests that are not marked slow"
	@echo "make env         the set-up of make test alone"
	@echo "make docs-check  run every command of the pages, in a copy"
	@echo "make lint        ruff; make format: let ruff rewrite"
	@echo "make clean       remove output/, caches and build files; keeps VENV"
	@echo "Variables: VENV=.venv PYTHON=python3 ARGS= WORKERS=2 (processes of the tests)"

install:
	$(SETUP) base

demo:
	$(SETUP) base
	$(RUN) projects/SparseRefine/demo/synthetic_demo.py $(ARGS)

web:
	$(SETUP) base web
	$(RUN) projects/SparseRefine/demo/web_demo.py $(ARGS)

env:
	$(SETUP) base web test minkowski browser

test: env
	$(RUN) -m pytest $(SPREAD) $(ARGS)

test-fast:
	$(SETUP) base web test
	$(RUN) -m pytest -m "not slow" $(SPREAD) $(ARGS)

docs-check: env
	$(RUN) tools/docs_check.py $(ARGS)

lint:
	$(SETUP) lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format:
	$(SETUP) lint
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf output build dist .pytest_cache .ruff_cache projects/SparseRefine/*.egg-info
	find projects tests -name __pycache__ -type d -prune -exec rm -rf {} +
