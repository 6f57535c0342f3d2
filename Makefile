# Everything a fresh machine needs, with nothing before it but Python 3.11+, git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# waiting threads spin briefly, then sleep: spinning on, as is the default, is ten times slower beside a busy process
export GOMP_SPINCOUNT ?= 1000

.DEFAULT_GOAL := help
# a file's tests stay in one process; tests/conftest.py puts the files that take longest first
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help setup report lint format test test-fast coverage test-interop peers axe accept lab site bench notebooks lock plotly-js clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(READY)  ## make .venv with the exact versions of requirements.lock

$(READY): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar on -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $(READY)

report: $(READY)  ## run all six notebooks on the embedded models and write outputs/report/index.html
	$(BIN)/rkcnn report params/quick

lint: $(READY)  ## ruff: rules and format; basedpyright: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --project pyproject.toml --pythonpath $(BIN)/python

format: $(READY)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# small arrays: a second thread gains nothing, and beside a busy neighbour it costs a lot
test test-fast coverage: export OMP_NUM_THREADS ?= 1

test: lint  ## lint, format check and all tests, on all cores
	@test -f $(AXE) || ! command -v npm >/dev/null || $(MAKE) --silent axe || echo "axe-core could not be fetched"
	$(PYTEST)

test-fast: lint  ## lint and most tests: not what takes long and nothing in a browser
	$(PYTEST) -m "not long and not slow and not browser"

# tracing costs a fifth of the time where arrays are at work and doubles it elsewhere: a target of its own
coverage: $(READY)  ## all tests, and which lines and branches they reach; at least 90 % of probe, sae and measure
	$(PYTEST) --cov --cov-report=term
	$(BIN)/coverage report --include='rkcnn_lib/probe/*,rkcnn_lib/sae/*,rkcnn_lib/measure/*' --fail-under=90

# the accessibility checker is a script for browsers, from the npm registry; without it its test is skipped
AXE := build/axe-core/axe.min.js

axe: $(AXE)  ## fetch axe-core, with which a test checks the pages' accessibility (needs npm)

$(AXE):
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent axe-core@4.14.1 && tar -xzf axe-core-4.14.1.tgz --strip-components=1 package/axe.min.js package/LICENSE
	rm $(@D)/*.tgz && touch $@

# other projects whose requirements contradict ours live in environments of their own
PEERS := sae-lens==6.54.12 dictionary-learning==0.1.0

$(VENV)-%/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(shell grep -E '^torch==' requirements.lock) $(filter $*==%,$(PEERS))
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision  # comes along unused, built for another torch
	touch $@

peers: $(VENV)-sae-lens/.ready $(VENV)-dictionary-learning/.ready  ## make the environments of the peers that benchmarks time and tests ask

test-interop: $(READY) peers  ## check our SAE files and starts against SAELens and dictionary_learning themselves
	SAELENS_PYTHON=$(VENV)-sae-lens/bin/python DICTIONARY_LEARNING_PYTHON=$(VENV)-dictionary-learning/bin/python \
	$(BIN)/python -m pytest tests/interop

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

site: $(READY)  ## write the pages again from the runs that are there
	$(BIN)/rkcnn site

accept: $(READY)  ## open every page of outputs/report in Chromium and try all its figures, tables and links
	$(BIN)/python -m tests.pages.acceptance outputs/report

bench: $(READY)  ## time the project against peers, one JSON line a figure
	for f in benchmarks/*.py; do $(BIN)/python $$f || exit 1; done

notebooks: $(READY)  ## write the parameters cells, then build notebooks/*.ipynb from notebooks/*.py
	$(BIN)/python -m rkcnn_lib.runs.params
	$(BIN)/jupytext --update --to ipynb notebooks/*.py

plotly-js: $(READY)  ## fetch the small bundle of plotly.js that pages load, in the installed version (needs npm)
	set -e; version=$$($(BIN)/python -c 'from plotly.offline import get_plotlyjs_version as v; print(v())'); \
	work=$$(mktemp -d); npm pack --silent --pack-destination $$work plotly.js-cartesian-dist-min@$$version; \
	tar -xzf $$work/*.tgz -C $$work; cp $$work/package/plotly-cartesian.min.js rkcnn_lib/pages/assets/; \
	cp $$work/package/LICENSE rkcnn_lib/pages/assets/plotly-cartesian.LICENSE; rm -r $$work

lock:  ## write requirements.lock anew from what pyproject.toml resolves to today
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lock/bin/python -m pip install $(shell grep -E '^torch==' requirements.lock) -e '.[dev]'
	( grep '^#' requirements.lock; $(VENV)-lock/bin/pip freeze --exclude-editable \
	  | grep -v -E '^(nvidia-|triton)' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' ) > $(VENV)-lock/lock
	mv $(VENV)-lock/lock requirements.lock && rm -rf $(VENV)-lock

clean:  ## remove the environment and all outputs but the published ones
	rm -rf $(VENV) $(VENV)-* build *.egg-info .pytest_cache .ruff_cache .coverage
	find outputs -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +
