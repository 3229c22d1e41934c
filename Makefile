# make demo · make test · make check · make commands · make page · make docs · make export · make bench · make clean
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt
WORKERS ?= 2
NOTEBOOKS := $(wildcard nbs/*.ipynb nbs/*/*.ipynb)

.PHONY: help demo test check commands page docs readme export run bench clean
help:
	@echo "make demo    text to an evaluated language model on this machine, in minutes"
	@echo "make test    every notebook is a test; run them all"
	@echo "make check   notebooks clean, modules and README in step, floor rule, configs, wheel"
	@echo "make commands  the documented command lines, word for word, from a built wheel in an empty folder"
	@echo "make page    the chat page in a real browser (needs Chromium or Chrome), half a minute"
	@echo "make docs    README.md and a preview of the site in _preview/ (no Quarto needed)"
	@echo "make export  modules from notebooks, schemas of configs;  make run: refresh the notebooks' outputs"
	@echo "make bench   the peers in an environment of their own, and a race with them (an hour, on an idle machine)"

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

page: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/chat_page_test.py

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/docs/build.py all

readme: $(VENV)/.installed-dev
	$(BIN)/python tools/docs/build.py readme

export: $(VENV)/.installed-dev
	$(BIN)/nbdev_export
	$(BIN)/python tools/schemas.py

run: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/run_nbs.py --timing $(NB)
	$(BIN)/nbdev_clean

# litgpt holds back transformers and huggingface_hub, so it gets an environment of its own, with the same PyTorch
bench: BENCH ?= .venv-bench
bench: NB ?= nbs/benchmarks/training_step.ipynb
bench: FLAGS ?= slow
bench:
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip --disable-pip-version-check install --quiet "$$(grep '^torch==' constraints.txt)" -e ".[bench]"
	PATH="$(abspath $(BENCH))/bin:$$PATH" $(BENCH)/bin/python tools/run_nbs.py --flags $(FLAGS) --timing $(NB)
	$(BENCH)/bin/nbdev_clean --fname $(NB)

clean:
	rm -rf _proc _docs _preview build dist *.egg-info
