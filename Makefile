# Two commands a newcomer needs: `make demo` and `make test`. Both create .venv on first use,
# and neither touches the network again until pyproject.toml, constraints.txt or the C kernels change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench clean

demo: $(VENV)/installed
	$(BIN)/torchlasso demo

test: $(VENV)/installed-dev
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --dist worksteal

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/bench_tables.py
	OMP_WAIT_POLICY=passive $(BIN)/torchlasso bench step

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

KERNELS := hatch_build.py $(wildcard src/torchlasso/optim/kernels/*.[ch])

$(VENV)/installed: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info
