# Every command a person types. `make help` lists them.
PROFILE ?= cpu
SET ?=
PY := .venv/bin/python
SAO = $(PY) -m sao_lib
OPTIONS = --profile $(PROFILE) $(if $(SET),--set $(SET))
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup doctor test lint lab clean
.DELETE_ON_ERROR:

help:  ## This list
	@awk -F ':.*## ' '/^[a-z%0-9-]+:.*## /{printf "  make %-26s %s\n", $$1, $$2}' $(MAKEFILE_LIST) | sed 's/%/TABLE/'
	@echo
	@echo "  PROFILE=cpu (default), gpu or paper; SET=\"train.learning_rate=1e-5 seed=7\" changes parameters."
	@echo "  TABLE is one of: $(patsubst params/experiments/%.yaml,%,$(wildcard params/experiments/*.yaml))."

setup: $(STAMP)  ## Create .venv with pinned versions; 2 minutes, 5 GB of disk

$(STAMP): requirements.lock pyproject.toml tools/install.sh tools/overrides.txt
	@tools/install.sh
	@touch $@

doctor: $(STAMP)  ## What this machine has, what each profile needs, what is missing; seconds
	@$(SAO) doctor

reproduce-%: $(STAMP)  ## Run what is missing of a table and print it; cpu: see the README, gpu and paper: see make plan-TABLE
	@$(SAO) reproduce $* $(OPTIONS)

plan-%: $(STAMP)  ## Show the runs of a table without starting one; seconds
	@$(SAO) plan $* $(OPTIONS)

test: $(STAMP)  ## Lint, types, unit tests, every notebook, the main path at its smallest; cpu only
	@$(MAKE) --no-print-directory lint
	@$(PY) -m pytest -q

lint: $(STAMP)  ## ruff and mypy; seconds
	@$(PY) -m ruff check . && $(PY) -m ruff format --check sao_lib tests && $(PY) -m mypy

lab: $(STAMP)  ## Open the notebooks in JupyterLab
	@$(PY) -m jupyterlab notebooks

clean:  ## Delete outputs/ except the reference results; asks nothing
	@find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
