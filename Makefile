# The commands of this project; `make` alone lists them. Every target that needs the environment
# makes it first, so `make demo` is enough on a fresh clone.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup build demo test test-all check format clean distclean

PYTHON ?=
ARGS ?=
export PYTHON

VENV := .venv
WITH_ENV := scripts/with_env
ENV_STAMP := $(VENV)/setup_stamp
RENDERER := $(VENV)/mujoco_gl

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo '  scripts/with_env <command>   runs any command with ROS 2 and .venv in place'

setup: build $(RENDERER) ## make .venv, build the package, find a renderer (PYTHON=, TORCH_INDEX_URL=)
	@echo; echo 'Ready. Try: make demo      or: $(WITH_ENV) safe-pruner --help'

$(ENV_STAMP): $(wildcard requirements/*.txt) setup.py setup.cfg scripts/setup_env.py
	@python=$$(scripts/find_python) && "$$python" scripts/setup_env.py env

# Takes about two seconds when nothing changed; colcon knows better than make what is stale.
build: $(ENV_STAMP)
	@[ -x $(VENV)/bin/python ] || { echo 'setup stopped: the Python of $(VENV) is gone. Run: make distclean, and the same again' >&2; exit 1; }
	@$(VENV)/bin/python scripts/setup_env.py build

$(RENDERER): $(ENV_STAMP)
	@$(VENV)/bin/python scripts/setup_env.py renderer

demo: build $(RENDERER) ## simulated robot + policy node over DDS, results in out/demo (ARGS=)
	$(WITH_ENV) safe-pruner demo $(ARGS)

test: build $(RENDERER) ## pytest in the built workspace, without gpu, weights and slow (ARGS=)
	$(WITH_ENV) python -m pytest $(ARGS)

test-all: build $(RENDERER) ## the same with the slow tests
	$(WITH_ENV) python -m pytest -m 'not gpu and not weights' $(ARGS)

check: $(ENV_STAMP) ## format, lint, import rules, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

format: $(ENV_STAMP) ## let ruff format and fix what it can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean: ## remove what was built; .venv, out/ and runs/ stay
	rm -rf build install log .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV) *.egg-info
