# make demo · make test · make check · make commands · make docs · make export · make clean
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt
WORKERS ?= 2
NOTEBOOKS := $(wildcard nbs/*.ipynb)

.PHONY: help demo test check commands docs readme export run clean
help:
	@echo "make demo    text to an evaluated language model on this machine, in minutes"
	@echo "make test    every notebook is a test; run them all"
	@echo "make check   notebooks clean, modules and README in step, floor rule, configs, wheel"
	@echo "make commands  the documented command lines, word for word, from a built wheel in an empty folder"
	@echo "make docs    README.md and a preview of the site in _preview/ (no Quarto needed)"
	@echo "make export  modules from notebooks;  make run: refresh the notebooks' outputs"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.py settings.ini constraints.txt
	@echo "installing Lumi-Lab into $(VENV) (once)"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV) (once)"
	$(PIP) -e ".[dev]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/lumi_pipeline --config pipeline/quickstart.json

test: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev_test --n_workers $(WORKERS) --timing
	@echo "$(words $(NOTEBOOKS)) passed, 0 failed"

check: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/check.py

commands: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/commands.py --wheel

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/docs/build.py all

readme: $(VENV)/.installed-dev
	$(BIN)/python tools/docs/build.py readme

export: $(VENV)/.installed-dev
	$(BIN)/nbdev_export

run: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/run_nbs.py --timing $(NB)
	$(BIN)/nbdev_clean

clean:
	rm -rf _proc _docs _preview build dist *.egg-info
