# make demo | test | lab (lint, benchmark, calibration, fusion, resolution): each makes its own environment in .venv if there
# is none, and reuses it after that. Calibration takes an hour or more: make calibration CALIBRATION="--cache DIR
# --workers 2" keeps the simulated cubes and uses two processes. make resolution RESOLUTION="frc --seeds 50" runs a part.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lab lint benchmark calibration fusion resolution clean

demo: $(VENV)/.core
	$(BIN)/misr demo

test: $(VENV)/.test
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 tutorials notebooks

lab: $(VENV)/.lab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir=. tutorials/01_first_image.ipynb

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/.test
	$(BIN)/python -m pytest tests/benchmarks/bench_*.py --benchmark-only --benchmark-columns=min,median,rounds

calibration: $(VENV)/.test
	$(BIN)/python tests/benchmarks/calibration_table.py --py4dstem --fused $(CALIBRATION)

fusion: $(VENV)/.test
	$(BIN)/python tests/benchmarks/fusion_resolution.py $(FUSION)
	$(BIN)/python tests/benchmarks/fusion_large.py $(LARGE)

resolution: $(VENV)/.test
	$(BIN)/python tests/benchmarks/resolution_table.py $(RESOLUTION)

clean:
	rm -rf $(VENV) dist misr-demo

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.core: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.lab: $(VENV)/.core
	$(PIP) --editable ".[lab]"
	touch $@

$(VENV)/.test: $(VENV)/.lab
	$(PIP) --editable ".[lab,test]"
	touch $@
