# Every command a person types. `make help` lists them.
PROFILE ?= cpu
SET ?=
CLUSTER ?= local
FRESH ?=
OPTIONS = --profile $(PROFILE) $(if $(SET),--set $(SET))
# Profile cpu and the tests have an environment of their own; to plan or to report, either will do.
STAMP := $(if $(filter cpu,$(PROFILE)),.venv,.venv-gpu)/.installed
EITHER := $(firstword $(wildcard $(STAMP) .venv/.installed .venv-gpu/.installed) .venv/.installed)
python = $(dir $<)bin/python
SAO = $(python) -m sao_lib

.DEFAULT_GOAL := help
.PHONY: help setup doctor report status test lint published-data lab student solutions site clean
.DELETE_ON_ERROR:

help:  ## This list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{sub(/%/, "TABLE", $$1); printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST) 
	@echo
	@echo "  PROFILE=cpu (default), gpu-small, gpu or paper; SET=\"train.learning_rate=1e-5 seed=7\" changes parameters."
	@echo "  FRESH=stale makes again what other code made, FRESH=all everything of the table."
	@echo "  CLUSTER=local (default), slurm or kubernetes says where reproduce-TABLE runs."
	@echo "  TABLE is one of: all $(patsubst params/experiments/%.yaml,%,$(wildcard params/experiments/*.yaml))."

setup: $(STAMP)  ## Create .venv, or for another profile than cpu .venv-gpu, with pinned versions; cpu: 2 minutes, 5 GB of disk

.venv/.installed: requirements.lock pyproject.toml tools/install.sh tools/overrides.txt
	@tools/install.sh cpu
	@touch $@

.venv-gpu/.installed: requirements-gpu.lock pyproject.toml tools/install.sh tools/overrides.txt
	@tools/install.sh gpu
	@touch $@

# The course's own packages, for the commands that need them: `make setup` stays as it is.
.venv/.course: .venv/.installed requirements-course.lock
	@$(python) -m pip --disable-pip-version-check install --quiet --no-deps -r requirements-course.lock
	@touch $@

doctor: $(EITHER)  ## What this machine has, what each profile needs, what is missing; seconds on every profile
	@$(SAO) doctor

reproduce-%: $(STAMP)  ## Run what is missing of a table or figure, or of all; cpu: under 20 minutes, all under 90; gpu, paper: not measured
	@$(SAO) reproduce $* --cluster $(CLUSTER) $(if $(FRESH),--fresh $(FRESH)) $(OPTIONS)

report: $(EITHER)  ## One HTML page with every finished table and figure, ours beside the paper's; seconds
	@$(SAO) report --profile $(PROFILE)

status: $(EITHER)  ## Write docs/status.md and the README's count of claims from outputs/reference; seconds
	@$(SAO) status

plan-%: $(EITHER)  ## Show the runs of a table without starting one; seconds on every profile
	@$(SAO) plan $* $(OPTIONS)

test: .venv/.course  ## Lint, types, unit tests, every notebook, the main path at its smallest; under 20 minutes, no GPU
	@$(MAKE) --no-print-directory lint
	@$(python) -m pytest -q

lint: .venv/.installed  ## ruff and mypy; seconds
	@$(python) -m ruff check . && $(python) -m ruff format --check sao_lib tests tools && $(python) -m mypy

published-data: $(EITHER)  ## Fetch and check the published files that the strongest tests read; 130 MB, nothing the second time
	@$(python) tools/published_data.py

lab: $(EITHER)  ## Open the notebooks in JupyterLab
	@$(python) -m jupyterlab notebooks

student: .venv/.course  ## Exercises without solutions or outputs, into build/student; seconds
	@$(python) tools/exercises.py student

solutions: .venv/.course  ## Prove every exercise: its solution passes, a student's copy and planted wrong answers fail; a minute
	@$(python) tools/exercises.py solutions

site: .venv/.course  ## Notebooks, report, exercises and teaching notes as a website without a network, into build/site; 2 minutes
	@$(python) tools/website.py

clean:  ## Delete outputs/ except the reference results; asks nothing
	@find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
