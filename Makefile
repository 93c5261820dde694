# make fit       set up .venv, train the default regression, test its best checkpoint
# make test      set up .venv, check style and types, run the fast tests
# make test-all  the same with the slow tests
# make gpu       test and measure on this machine's GPU, in 6 minutes
# make docs      build the site into docs/_build/html; a warning, a broken link in it or an error in a tutorial fails
# make links     ask for every page elsewhere that the site links to; takes a network
# make clean     remove .venv and what docs built
#
# Needs Python >= 3.11 and nothing else. Another one: make PYTHON=/path/to/python3.12 fit

PYTHON ?= python3
CONFIG ?= configs/regression/co2.yaml
BIN := .venv/bin
# a worker for each core; one that is done takes over tests of the others
SIDE_BY_SIDE := --numprocesses auto --dist worksteal

.PHONY: fit test test-all gpu docs links check clean

fit: .venv/installed
	$(BIN)/python -m ika_lightning fit --config $(CONFIG)
	@best=$$(ls -t runs/*/version_*/checkpoints/best.ckpt | head -n 1) && \
	$(BIN)/python -m ika_lightning test --ckpt_path "$$best" && \
	echo "checkpoint:   $$best" && \
	echo "TensorBoard:  $(BIN)/tensorboard --logdir $${best%/checkpoints/*}"

test: check
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE)

test-all: check
	$(BIN)/python -m pytest -q -m "slow or not slow"

gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py

docs: .venv/installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

links: .venv/installed-docs
	$(BIN)/python -m sphinx -q -b linkcheck -D nb_execution_mode=off docs docs/_build/links

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One environment for all of the above. The stamp is written last, so an interrupted installation is done again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "Python >= 3.11 is needed, but $(PYTHON) is: $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "installing into .venv; the first time takes minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# What the site alone takes, on top of it.
.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean:
	rm -rf .venv docs/_build
