# "make help" lists the targets. Python 3.11 or newer has to be there; the rest goes into .venv, once.

PYTHON ?= python3
VENV ?= .venv
ACCELERATOR ?=
ARGS ?=

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
READY := $(if $(VENV),$(VENV)/ready-$(or $(ACCELERATOR),cpu))
PACKAGES := -c constraints.txt -e '.[test,lint]' $(ACCELERATOR:%='jax[%]')
FILES := $(filter-out %/__init__.py,$(wildcard experiments/*.py))
EXPERIMENTS := $(FILES:experiments/%.py=exp-%)
VARIABLES := PYTHON VENV ACCELERATOR ARGS
SPELT := import difflib, sys; print(*(f"(did you mean {name}?)" for name in difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1)))
NEAR = $(shell $(PYTHON) -c '$(SPELT)' '$1' $(VARIABLES) 2>/dev/null)
$(foreach v,$(filter-out $(VARIABLES),$(.VARIABLES)),$(if $(filter command,$(origin $v)),$(error There is no variable $v here, only $(strip $(VARIABLES) $(call NEAR,$v)); flags of an experiment go into ARGS="--flag value")))

help:
	@echo 'make exp-NAME   run experiments/NAME.py; ARGS=--help lists its flags, ARGS="--flag value" sets one:'
	@for file in $(FILES); do echo "  $$file: $$(sed -n '1s/"""//gp' $$file)"; done
	@echo 'make paper      run make exp-paper: all tables and figures of the paper'
	@echo 'make published  write the published reports again'
	@echo 'make test, make lint           run pytest with ARGS; run ruff and mypy'
	@echo 'make bench, make accelerator   benchmark the maximisers; run the benchmarks for a GPU or TPU'
	@echo 'make setup, make clean         create .venv (the others do so too); remove .venv and caches'
	@echo 'Variables:'
	@echo '  ACCELERATOR=cuda13  install jax[cuda13], or another extra of JAX, such as tpu'
	@echo '  PYTHON=python3.12   create .venv with this interpreter'
	@echo '  VENV=               use the active Python and install nothing; it needs "pip install -e .[test]"'

$(EXPERIMENTS): exp-%: $(READY)
	@$(PY) -m experiments.$* $(ARGS)

exp-%:
	$(error There is no experiment "$*"; there are: $(EXPERIMENTS:exp-%=%))

paper: exp-paper

published: $(READY)
	@$(PY) -m experiments.lib.published $(ARGS)
test: $(READY)
	@$(PY) -m pytest $(ARGS)
bench accelerator: $(READY)
	@$(PY) -m benchmarks.$(@:bench=sharpness) $(ARGS)

lint: $(READY)
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

setup: $(READY)

$(VENV)/ready-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt uv
	$(PY) -m uv pip install $(PACKAGES) || $(PY) -m pip install --no-compile $(PACKAGES)  # uv reads none of pip's settings
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache; find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help paper published bench accelerator test lint setup clean $(EXPERIMENTS)
