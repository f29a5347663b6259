# The checks by name. They use the Python of the active virtual environment; CONTRIBUTING.md says how to make one.

PYTHON ?= python
NATIVE := $(wildcard tfppo/computation/native/*.cc tfppo/computation/native/*.h)

.DEFAULT_GOAL := help
.PHONY: help lint format fast test native mutations bench

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lint:  ## ruff, mypy, and the format of the C++ sources
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) tools/check_native.py --quick

format:  ## rewrites Python and C++ sources in the project's format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	clang-format -i $(NATIVE)

fast:  ## the tests that are not marked slow
	$(PYTHON) -m pytest -m "not slow"

test:  ## all tests
	$(PYTHON) -m pytest

native:  ## the C++ checks in full
	$(PYTHON) tools/check_native.py

mutations:  ## puts something wrong into one function at a time; a test must notice each
	$(PYTHON) tools/mutation_check.py

bench:  ## times the phases of an iteration of the smallest model
	$(PYTHON) tools/benchmark.py --preset=tiny --batch=16
