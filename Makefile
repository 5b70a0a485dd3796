# Two commands: `make demo` and `make test`. Both make .venv first, with the first Python >= 3.11 that runs.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# NVIDIA's wheels for the tests that build real plans: TensorRT-RTX builds without a GPU, the lean runtimes show TensorRT 11's names and 10's.
# Those of 10 have a folder of their own: both are imported by the same name.
PLANS := $(VENV)/trt10/.installed
# A name on the PATH may be a shim of a version that is not installed: each is asked before it is taken.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3 python; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1 && echo $$name && break; done)

.PHONY: help demo test lint format report clean

help:
	@echo "make demo    install, fetch CIFAR-10, export, verify and time the shipped models, print the table"
	@echo "make test    install if need be and run the tests"
	@echo "make report  make the README's result tables and each results/MACHINE/sets.md, report.html and table.md anew from results/"
	@echo "make lint    ruff, format check, mypy --strict"

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "accel needs Python 3.11, 3.12 or 3.13 here; none was found (set PYTHON=/path/to/python)" >&2; exit 4; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(STAMP)
	@$(BIN)/accel demo

# They exist for Linux on x86-64; elsewhere the tests that need them are skipped and say so.
$(PLANS): $(STAMP)
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[rtx]' -c constraints.txt \
			'tensorrt-lean-cu13-libs>=11,<12' 'tensorrt-lean-cu13-bindings>=11,<12' && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(dir $@) \
			'tensorrt-lean-cu13-libs>=10,<11' 'tensorrt-lean-cu13-bindings>=10,<11'; fi
	@mkdir -p $(dir $@) && touch $@

# Two processes: most tests wait for workers of their own. One thread each: several would wait for each other. A file stays in one process.
test: $(PLANS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-fail-under=85 --cov-report=term:skip-covered $(ARGS)

# CHECK=--check writes nothing and fails if something would change. Each kind of machine has its own table, those of PAGES a page too (each
# is some hundred KB). A set is shown where its markers are, in the README or in results/MACHINE/sets.md, and so is a table (`accel:results
# final-MACHINE`). Trainings of all machines are in each table: a row names its GPU.
PAGES = h200
SETS = $(filter-out results/local/%,$(dir $(wildcard results/*/*/results.jsonl* results/*/*/*/results.jsonl*)))
report: $(STAMP)
	@for machine in $(sort $(foreach set,$(SETS),$(word 2,$(subst /, ,$(set))))); do \
		$(BIN)/accel report $$(ls -d results/$$machine/*/results.jsonl* results/$$machine/*/*/results.jsonl* 2>/dev/null | xargs dirname) \
			$$(case " $(PAGES) " in *" $$machine "*) echo --html results/$$machine/report.html;; esac) --final results/$$machine/table.md --update README.md \
			$$(ls results/$$machine/sets.md 2>/dev/null | sed 's/^/--update /') \
			$$(ls -d accel/trainers/weights results/*/training 2>/dev/null | sed 's/^/--training /') $(CHECK) || exit; done

lint: $(STAMP)
	$(BIN)/ruff check accel tests examples
	$(BIN)/ruff format --check accel tests examples
	$(BIN)/mypy --strict accel

format: $(STAMP)
	$(BIN)/ruff format accel tests examples
	$(BIN)/ruff check --fix accel tests examples

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
