# "make help" lists the targets. Python 3.11 or newer has to be there; the rest goes into .venv, once.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

DATASET ?= digits
TABLES_digits := digits
TABLES_mnist := mnist
TABLES_cifar10 := cifar
TABLES_cifar100 := cifar --dataset cifar100
NETWORK_cifar10 := c1
NETWORK_cifar100 := c3

EXPERIMENTS := $(patsubst experiments/%.py,exp-%,$(wildcard experiments/[a-z]*.py))

ifneq ($(words $(CURDIR)),1)
  $(error There is a space in the path "$(CURDIR)", and make cannot work with that: rename the directory)
endif

ifeq ($(strip $(VENV)),)
  ifneq ($(strip $(ACCELERATOR)),)
    $(error VENV= takes the jax that is there and ACCELERATOR= installs one: give only one of the two)
  endif
  PY := $(PYTHON)
  READY := present
else
  PY := $(VENV)/bin/python
  READY := $(VENV)/.ready
  # The stamp holds what .venv was made for: "3.11", or "3.11 cuda13".
  made := $(shell cat $(READY) 2>/dev/null)
  version := import sys; print("%d.%d" % sys.version_info[:2])
  asked := $(filter-out file default undefined,$(origin PYTHON))
  ACCELERATOR ?= $(word 2,$(made))
  wanted := $(if $(asked),$(or $(shell $(PYTHON) -c '$(version)' 2>/dev/null),unknown),$(word 1,$(made))) $(ACCELERATOR)
endif

help:
	@echo 'make exp-NAME         run experiments/NAME.py; ARGS="--flag value" goes to it'
	@for f in $(EXPERIMENTS:exp-%=experiments/%.py); do name=$${f##*/}; \
	  printf '  make exp-%-12s %s\n' "$${name%.py}" "$$(sed -n '1s/^r*"""//; 1s/"""$$//; 1p' "$$f")"; done
	@echo 'make paper            run what is behind every table and figure, and write one report; DATASET=mnist for'
	@echo '                      another data set than the digits'
	@echo 'make bench            measure the maximisers against SciPy; ARGS="--flag value" goes to it'
	@echo 'make test             run the tests; ARGS goes to pytest'
	@echo 'make lint             run ruff check, ruff format --check and mypy'
	@echo 'make setup            make .venv; the others do it by themselves'
	@echo 'make clean            remove .venv and the caches; results/ stays'
	@echo 'make help             print this list'
	@echo 'With any of them:'
	@echo '  ACCELERATOR=cuda13  install jax[cuda13]; or tpu, or another of the extras of jax'
	@echo '  PYTHON=python3.12   make .venv with this interpreter; default: python3'
	@echo '  VENV=               no .venv: use PYTHON with the jax it has, and add only what is missing'

$(EXPERIMENTS): exp-%: $(READY)
	@$(PY) -m experiments.$* $(ARGS)

exp-%:
	$(error There is no experiment "$*"; there are: $(EXPERIMENTS:exp-%=%))

# In the order in which they use each other's minima; each goes on where it was stopped.
paper: $(READY)
	@$(PY) -m experiments.$(or $(TABLES_$(DATASET)),mnist --dataset $(DATASET))
	@for name in landscape trajectory batch_size warm_start paper; do \
	  $(PY) -m experiments.$$name --network $(or $(NETWORK_$(DATASET)),f1) --dataset $(DATASET) || exit; done

bench: $(READY)
	@$(PY) -m benchmarks.sharpness $(ARGS)

test: $(READY)
	@$(PY) -m pytest $(ARGS)

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

setup: $(READY)

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.DEFAULT:
	$(error There is no target "$@"; "make help" lists them)

.PHONY: help paper bench test lint setup clean present again $(EXPERIMENTS)

# uv is several times faster than pip, but reads none of pip's configuration: where pip has been given an
# index of its own, or uv fails, pip installs. An interrupted set-up leaves .unfinished, and is begun anew.
define MAKE_VENV
set -u
say() { printf '%s\n' "$$*" >&2; }
stop() {
  if [ -n "$${updating-}" ]; then
    echo "$(made)" >$(READY) && touch -t 200001010000 $(READY) && rm -f $(VENV)/.unfinished
  fi
  say "Set-up failed: $$*"
  exit 1
}
have=$$($(PYTHON) -c '$(version)' 2>/dev/null) ||
  stop "$(PYTHON) does not run; Python 3.11 or newer is needed (PYTHON=... names another interpreter)."
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  stop "$(PYTHON) is Python $$have, and 3.11 or newer is needed (PYTHON=... names another interpreter)."
if [ -e $(VENV)/.unfinished ]; then
  kill -0 "$$(cat $(VENV)/.unfinished)" 2>/dev/null &&
    stop "another make is at work on $(VENV) (process $$(cat $(VENV)/.unfinished)): wait for it, or remove $(VENV)."
  rm -rf $(VENV)
elif [ -e $(READY) ]; then
  if [ -z "$(asked)" ] || [ "$$($(PY) -c '$(version)' 2>/dev/null)" = "$$have" ]; then updating=1; else rm -rf $(VENV); fi
elif [ -e $(VENV) ]; then
  stop "$(VENV) was not made by make: remove it, or activate it and give VENV= ."
fi
mkdir -p $(VENV) && echo $$$$ >$(VENV)/.unfinished && rm -f $(READY) || stop "$(VENV) cannot be written."
log=$(VENV)/setup.log
if [ -z "$${updating-}" ]; then
  say "Setting up $(VENV) with Python $$have: some 300 MB to download, 1.1 GB on disk, only once."
  $(PYTHON) -m venv $(VENV) >$$log 2>&1 ||
    stop "$(PYTHON) -m venv does not work (on Debian and Ubuntu: apt install python3-venv)."
fi
PIP_CONSTRAINT=$(CURDIR)/constraints.txt
PIP_BUILD_CONSTRAINT=$$PIP_CONSTRAINT UV_CONSTRAINT=$$PIP_CONSTRAINT UV_BUILD_CONSTRAINT=$$PIP_CONSTRAINT
export PIP_CONSTRAINT PIP_BUILD_CONSTRAINT UV_CONSTRAINT UV_BUILD_CONSTRAINT
pip="$(PY) -m pip --disable-pip-version-check"
with_uv() {
  ! $$pip config list | grep -q '\.index-url=' && $$pip install --retries 1 uv && $(PY) -m uv pip install --python $(PY) "$$@"
}
install() { with_uv "$$@" || $$pip install --no-compile "$$@"; }
install -e '.[test,lint]' $(ACCELERATOR:%='jax[%]') >$$log 2>&1 ||
  stop "the packages could not be installed ($$(grep -i -m 1 '^error' $$log)); is the package index in reach? $$log has the details."
for extra in $(ACCELERATOR); do
  $(PY) -c 'import importlib.metadata as m, sys; sys.exit(sys.argv[1] not in m.metadata("jax").get_all("Provides-Extra"))' $$extra ||
    stop "jax has no extra called $$extra."
done
echo "$$($(PY) -c '$(version)') $(ACCELERATOR)" >$(VENV)/.unfinished
mv $(VENV)/.unfinished $(READY)
endef
export MAKE_VENV

# With VENV= nothing that is installed may change, least of all jax: pip is held to the versions that are there.
define COMPLETE
import sys
if sys.version_info < (3, 11):
    sys.exit("%s is Python %d.%d, and 3.11 or newer is needed." % (sys.executable, *sys.version_info[:2]))
import importlib.metadata, re, subprocess, tempfile, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
needed = project["dependencies"] + [r for e in sys.argv[1:] for r in project["optional-dependencies"][e]]
plain = lambda name: re.sub("[-_.]+", "-", name).lower()
number = lambda version: [int(part) for part in re.findall("[0-9]+", version)[:3]]
have = {plain(d.name): d.version for d in importlib.metadata.distributions()}
pairs = [requirement.split(">=") for requirement in needed]
absent = [f"{name}>={low}" for name, low in pairs if plain(name) not in have]
old = [f"{name} {have[plain(name)]} (needed: {low})" for name, low in pairs
       if plain(name) in have and number(have[plain(name)]) < number(low)]
if not {"jax", "jaxlib"} <= have.keys():
    sys.exit(f"{sys.executable} has no jax: install it there first, or leave out VENV= .")
if old:
    sys.exit(f"Too old in {sys.executable}: {', '.join(old)}; VENV= changes nothing that is installed.")
if absent:
    print(f"Installing into {sys.executable}: {', '.join(absent)}; what is there stays as it is.", file=sys.stderr)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as held:
        held.write("".join(f"{name}=={version}\n" for name, version in have.items()))
        held.flush()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", held.name, *absent]
        done = subprocess.run(pip, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")] or [done.stderr]
        sys.exit(f"pip could not install them: {errors[-1].strip()}")
endef
export COMPLETE

present:
	@$(PY) -c "$$COMPLETE" $(filter test lint,$(MAKECMDGOALS))

$(VENV)/.ready: pyproject.toml constraints.txt $(if $(filter-out $(strip $(made)),$(strip $(wanted))),again)
	@sh -c "$$MAKE_VENV"
