# Every command a person types. `make help` lists them.
PROFILE ?= cpu
SET ?=
CLUSTER ?= local
PY := .venv/bin/python
SAO = $(PY) -m sao_lib
OPTIONS = --profile $(PROFILE) $(if $(SET),--set $(SET))
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup doctor report test lint lab clean
.DELETE_ON_ERROR:

help:  ## This list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{sub(/%/, "TABLE", $$1); printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST) 
	@echo
	@echo "  PROFILE=cpu (default), gpu or paper; SET=\"train.learning_rate=1e-5 seed=7\" changes parameters."
	@echo "  CLUSTER=local (default) or slurm says where reproduce-TABLE runs."
	@echo "  TABLE is one of: all $(patsubst params/experiments/%.yaml,%,$(wildcard params/experiments/*.yaml))."

setup: $(STAMP)  ## Create .venv with pinned versions; cpu: 2 minutes, 5 GB of disk; gpu, paper: use environment.yml

$(STAMP): requirements.lock pyproject.toml tools/install.sh tools/overrides.txt
	@tools/install.sh
	@touch $@

doctor: $(STAMP)  ## What this machine has, what each profile needs, what is missing; seconds on every profile
	@$(SAO) doctor

reproduce-%: $(STAMP)  ## Run what is missing of a table or figure, or of all; cpu: under 20 minutes, all under 90; gpu, paper: not measured
	@$(SAO) reproduce $* --cluster $(CLUSTER) $(OPTIONS)

report: $(STAMP)  ## One HTML page with every finished table and figure, ours beside the paper's; seconds
	@$(SAO) report --profile $(PROFILE)

plan-%: $(STAMP)  ## Show the runs of a table without starting one; seconds on every profile
	@$(SAO) plan $* $(OPTIONS)

test: $(STAMP)  ## Lint, types, unit tests, every notebook, the main path at its smallest; under 20 minutes, no GPU
	@$(MAKE) --no-print-directory lint
	@$(PY) -m pytest -q

lint: $(STAMP)  ## ruff and mypy; seconds
	@$(PY) -m ruff check . && $(PY) -m ruff format --check sao_lib tests && $(PY) -m mypy

lab: $(STAMP)  ## Open the notebooks in JupyterLab
	@$(PY) -m jupyterlab notebooks

clean:  ## Delete outputs/ except the reference results; asks nothing
	@find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
