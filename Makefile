# Every command a person types. `make help` lists them.
PROFILE ?= cpu
SET ?=
CLUSTER ?= local
FRESH ?=
ONLY ?=
LIMIT ?= 90
ROWS ?=
# What a person types reaches recipes through the environment, as it was typed: neither make nor the shell reads it.
override PROFILE := $(value PROFILE)
override SET := $(value SET)
override CLUSTER := $(value CLUSTER)
override FRESH := $(value FRESH)
override ONLY := $(value ONLY)
override LIMIT := $(value LIMIT)
override ROWS := $(value ROWS)
export PROFILE SET CLUSTER FRESH ONLY LIMIT ROWS
# Profile cpu, profiles that extend it without a GPU, and the tests have an environment of their own; to plan or to
# report, either will do.
PROFILES := $(wildcard params/profiles/*.yaml)
OF_CPU := $(filter $(shell grep -l '^extends: *cpu' $(PROFILES)),$(shell grep -L 'gpus: *[1-9]' $(PROFILES)))
STAMP := $(if $(filter cpu $(OF_CPU:params/profiles/%.yaml=%),$(PROFILE)),.venv,.venv-gpu)/.installed
EITHER := $(firstword $(wildcard $(STAMP) .venv/.installed .venv-gpu/.installed) .venv/.installed)
python = $(dir $<)bin/python
ifeq ($(VENV),active)  # conda's or another that is active: nothing is installed
STAMP := pyproject.toml
EITHER := $(STAMP)
python = python
endif
SAO = $(python) -m sao_lib

.DEFAULT_GOAL := help
.PHONY: help setup doctor fetch export report status test lint published-data lab notebooks lesson-rows student solutions site clean rehearse \
	plan plan- reproduce reproduce-
.DELETE_ON_ERROR:
.SUFFIXES:

help:  ## This list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{sub(/%/, "TABLE", $$1); printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST) 
	@echo
	@echo "  PROFILE=cpu (default), cpu-long, gpu-small, gpu or paper; SET=\"train.learning_rate=1e-5 seed=7\" changes parameters."
	@echo "  FRESH=stale makes again what other code made, FRESH=all everything of the table."
	@echo "  VENV=active uses the environment that is active, e.g. conda's, and installs nothing."
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
	@$(SAO) doctor --profile="$$PROFILE"

reproduce-%: $(STAMP)  ## Run what is missing of a table or figure, or of all; cpu: under 20 minutes, all under 90; cpu-long: an evening a table; gpu, paper: not measured
	@$(SAO) reproduce --profile="$$PROFILE" --changes="$$SET" --cluster="$$CLUSTER" --fresh="$$FRESH" -- "$$TABLE"

fetch: $(EITHER)  ## Models and data of a PROFILE, or of its TABLE=table6 alone, before any card is held; resumes
	@$(SAO) fetch --profile="$$PROFILE" -- "$${TABLE:-all}"

rehearse: .venv/.installed  ## A GPU PROFILE's TABLE=table6 on this CPU, in LIMIT=90 minutes, ROWS="self armorm": hung, leaked, quadratic, or ready
	@$(python) -m rehearsal --profile="$$PROFILE" --limit="$$LIMIT" --rows="$$ROWS" -- "$${TABLE:-table6}"

export: $(EITHER)  ## RUN=outputs/cpu/train/...: its model or preference set as a folder for a hub; uploads nothing
	@$(SAO) export -- "$$RUN"

report: $(EITHER)  ## One HTML page with every finished table and figure, ours beside the paper's; seconds
	@$(SAO) report --profile="$$PROFILE"

status: $(EITHER)  ## Write docs/status.md and the README's blocks from outputs/reference; seconds
	@$(SAO) status

plan-%: $(EITHER)  ## Show the runs of a table without starting one; seconds on every profile
	@$(SAO) plan --profile="$$PROFILE" --changes="$$SET" -- "$$TABLE"

plan-% reproduce-%: export TABLE = $*
reproduce-%: export NEEDS_GPU = $(filter local,$(CLUSTER))

plan plan- reproduce reproduce- :
	@echo "Error: which table or figure? Say it as in make plan-table6, or all of them: make plan-all; make help lists them." >&2; exit 1

test: .venv/.course  ## Lint, types, unit tests, every notebook, the main path at its smallest; under 20 minutes, no GPU
	@$(MAKE) --no-print-directory lint
	@$(python) -m pytest -q

lint: .venv/.installed  ## ruff and mypy; seconds
	@$(python) -m ruff check . && $(python) -m ruff format --check sao_lib rehearsal tests tools && $(python) -m mypy

published-data: $(EITHER)  ## Fetch and check the published files that the strongest tests read; 130 MB, nothing the second time
	@$(python) tools/published_data.py

lab: $(EITHER)  ## Open the notebooks in JupyterLab, on this machine only; Run All in each needs no run before it
	@$(SAO) lab

notebooks: .venv/.installed  ## Run a lesson of each notebook whose code has changed and write its outputs into it; ONLY="03_train" of these
	@$(SAO) notebooks $$ONLY

lesson-rows: .venv/.installed  ## Make notebooks/data anew, which lessons start from, of the runs of reproduce-lesson and -dose; seconds; ONLY too
	@$(SAO) lesson-rows $$ONLY

student: .venv/.course  ## Exercises without solutions or outputs, into build/student; seconds
	@$(python) tools/exercises.py student

solutions: .venv/.course  ## Prove every exercise: its solution passes, a student's copy and planted wrong answers fail; a minute
	@$(python) tools/exercises.py solutions

site: .venv/.course  ## Notebooks, report, exercises and teaching notes as a website without a network, into build/site; 2 minutes
	@$(python) tools/website.py

clean:  ## Delete outputs/ except the reference results; asks nothing
	@find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
