# One place for what a person, a commit hook and continuous integration call. `make` alone lists the targets.
# Every target builds .venv by itself when it is missing, half-made or older than pyproject.toml.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
# Which tests `make test` runs. `slow`: more than about four seconds each, for documentation, exports, browsers and ranks.
CHOSEN ?= not long and not slow
# Real features and texts, and where records that are being made lie until they are complete.
DATA ?= ../shared/data
WORK := build/records
RECORDS := docs/records

VENV := .venv
BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=$(WORKERS) $(BIN)/python -m
# What is installed, what of it shows that it is, its size, and the mark that it is whole. The demo needs less.
EXTRAS := all,dev
SHOWN_BY := pytest
SIZE := 7
STAMP := $(VENV)/.complete
DEMO_STAMP := $(VENV)/.demo
FOR_DEMO := EXTRAS=bench,report SHOWN_BY=altair SIZE=6 STAMP=$(DEMO_STAMP)
COVERAGE := $(BIN)/python -m coverage

# True if .venv holds what is asked for and this very checkout. The package is located, not imported: an error in its
# source is for the tests to report, and no reason to install everything again.
define IS_USABLE
import importlib, importlib.util as u, pathlib as p, sys
importlib.import_module(sys.argv[1])
found = u.find_spec("opnp")
raise SystemExit(not (found and found.origin and p.Path(found.origin).resolve().is_relative_to(p.Path("src").resolve())))
endef
export IS_USABLE

# A PYTHONPATH or PYTHONHOME from outside could put another opnp, or another Python, in the place of this one.
unexport PYTHONPATH
unexport PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help check venv demo docs picture records results embeddings streams paper bench browser test test-all test-long test-minimum mutation audit coverage lint format wheel clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

# The stamp is put in place last, with the time at which the installation began. No stamp, or an unusable .venv:
# start over. Stamp older than pyproject.toml: install again in place; the stamp is away meanwhile, so that an
# interrupted installation counts as half-made.
venv:  ## Build .venv, or bring it up to date; does nothing when it is ready
	@set -e; \
	if [ -e $(STAMP) ] && $(BIN)/python -c "$$IS_USABLE" $(SHOWN_BY) >/dev/null 2>&1; then \
	    [ pyproject.toml -nt $(STAMP) ] || exit 0; \
	    echo "pyproject.toml has changed: updating $(VENV)"; \
	elif [ -e $(DEMO_STAMP) ] && $(BIN)/python -c "$$IS_USABLE" altair >/dev/null 2>&1; then \
	    echo "adding to $(VENV) what the demo did not need (a minute or two, about 1 GB)"; \
	else \
	    command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' was not found. Name a Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }; \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	        echo "opnp needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }; \
	    if [ -e $(VENV) ]; then echo "$(VENV) is incomplete: starting over"; rm -rf $(VENV); fi; \
	    echo "building $(VENV): some minutes and about $(SIZE) GB, of which torch with CUDA is 5"; \
	    $(PYTHON) -m venv $(VENV); \
	fi; \
	if [ -e $(STAMP) ]; then mv $(STAMP) $(STAMP).old; fi; \
	touch $(STAMP).new; \
	quiet=""; [ -t 1 ] || quiet="--quiet --quiet"; \
	if ! $(BIN)/python -m pip install $$quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'; then \
	    if [ -e $(STAMP).old ]; then mv $(STAMP).old $(STAMP); fi; \
	    echo "installation into $(VENV) failed; the reason stands above" >&2; exit 1; \
	fi; \
	$(BIN)/python -c "$$IS_USABLE" $(SHOWN_BY); \
	rm -f $(STAMP).old; \
	mv $(STAMP).new $(STAMP)

demo:  ## See it work: fit, prune and score, on data of this machine; installs what that needs, and no tools
	@$(MAKE) --no-print-directory venv $(if $(wildcard $(STAMP)),,$(FOR_DEMO))
	@$(BIN)/opnp demo --report opnp-demo/report.html

picture: venv  ## Draw the pictures of the README from the demo's scores
	@$(BIN)/opnp demo --out opnp-demo >/dev/null
	@$(BIN)/python tools/draw.py demo opnp-demo docs/assets/demo.svg
	@$(BIN)/python tools/draw.py report opnp-demo docs/assets/report-demo.png
	@$(BIN)/python tools/draw.py report opnp-demo docs/assets/report-demo-dark.png --theme dark
	@$(BIN)/python tools/draw.py report opnp-demo docs/assets/report-demo-narrow.png --width 400 --height 2600
	@$(BIN)/python tools/draw.py report opnp-demo docs/assets/report-demo-narrow-dark.png --width 400 --height 2600 --theme dark
	@$(BIN)/python tools/draw.py figure opnp-demo members-demo docs/assets/report-members.png
	@rm -rf build/records && mkdir -p build/records && cp docs/records/bench.json build/records/results.json
	@$(BIN)/python tools/draw.py figure build/records regrets docs/assets/report-regrets.png

# The variable silences a notice of mkdocs-material about the end of mkdocs 1.
docs: venv  ## Build the documentation strictly into build/site; nothing is fetched
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

# Everything that the documentation quotes, from the data: less than an hour on two cores.
NEAR := cifar100,densenet_cifar100:cifar10,clinc_oos
records: venv  ## Make the records of docs/records anew (DATA=../shared/data)
	@mkdir -p $(WORK) $(RECORDS)
	@$(RUN) studies.panel $(DATA)/features --out $(WORK)/panel.json --scores $(WORK)/panel_scores.parquet
	@$(RUN) studies.independent_regret $(WORK)/panel_scores.parquet --features $(DATA)/features --record $(WORK)/panel.json
	@$(RUN) studies.spread $(WORK)/panel_scores.parquet --near $(NEAR) --out $(WORK)/spread.json
	@$(RUN) studies.other_features $(WORK)/features --text $(DATA)/text/clinc150.json
	@$(RUN) studies.panel $(WORK)/features --out $(WORK)/panel_other.json
	@$(RUN) studies.robustness $(DATA)/features $(WORK)/features --out $(WORK)/robustness.json
	@$(RUN) opnp bench --features $(DATA)/features --near $(NEAR) --out $(WORK)/bench >/dev/null
	@$(RUN) opnp bench --features $(WORK)/features --out $(WORK)/bench_other --near out_of_scope,unseen_classes >/dev/null
	@$(RUN) opnp sweep --features $(DATA)/features --near $(NEAR) --out $(WORK)/sweep >/dev/null
	@cp $(WORK)/bench/results.json $(RECORDS)/bench.json
	@cp $(WORK)/bench_other/results.json $(RECORDS)/bench_other.json
	@cp $(WORK)/sweep/sweep.json $(WORK)/panel.json $(WORK)/panel_other.json $(WORK)/spread.json $(WORK)/robustness.json $(RECORDS)
	@$(MAKE) --no-print-directory results

bench: venv  ## Measure time and memory against floors and rivals, with bounds; write docs/explanation/performance.md
	@$(BIN)/python -m benchmarks --features $(DATA)/features --out $(RECORDS)/benchmarks.json; status=$$?; \
	$(BIN)/python -m benchmarks.page $(RECORDS)/benchmarks.json docs/explanation/performance.md; exit $$status

embeddings: venv  ## Measure the fusion on embeddings of length 1 for docs/how-to/embeddings.md, a minute
	@$(RUN) studies.embeddings $(DATA)/features/minilm_clinc150_mlp $(DATA)/features/magika_v3_3 \
	    --out $(RECORDS)/embeddings.json --page docs/how-to/embeddings.md

paper: venv  ## Run the protocol of the paper on stand-ins for its models and data, from images to a page (DATA=../shared/data)
	@$(RUN) opnp bench --protocol tests/real/paper_stand_ins.json --data-root $(DATA) --out build/paper \
	    --report build/paper/report.html

streams: venv  ## Simulate streams for docs/how-to/monitoring.md: false alarms and power of the monitor, two minutes
	@$(BIN)/python -m studies.monitor_streams

results: venv  ## Write docs/explanation/results.md from the records, and the figures that other pages quote
	@$(BIN)/python -m studies.results_page $(RECORDS) docs/explanation/results.md
	@$(BIN)/python -m studies.quotes $(RECORDS) README.md docs

# Debian's where we may install it, else Playwright's.
browser: venv  ## Install a browser for the tests of pages, unless there is one
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update; apt-get install -y --no-install-recommends chromium && exit 0; \
	fi; \
	$(BIN)/python -m playwright install chromium-headless-shell

# Two workers on two cores do not fight over threads. pytest fails by itself when it finds no test; the last line
# also fails when every test was skipped.
check: venv lint  ## A first look: lint, and the tests of core, detector and export
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "$(CHOSEN)" tests/unit/core tests/unit/detector \
	    tests/unit/export tests/reference

test: venv  ## Run the tests and doctests that are quick, about six minutes (WORKERS=2, ARGS="-k energy")
	@$(MAKE) --no-print-directory browser >/dev/null 2>&1 || echo "no browser could be installed: tests of pages are skipped" >&2
	@rm -f .test-report.xml
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "$(CHOSEN)" --junit-xml=.test-report.xml $(ARGS)
	@$(BIN)/python tools/check_tests_ran.py .test-report.xml

test-all: venv  ## Run the slow ones too, as continuous integration does: about ten minutes
	@$(MAKE) --no-print-directory test CHOSEN="not long"

test-long: venv  ## Run simulations, fuzzers, faults and soak, and print one table; it goes into docs/explanation/reliability.md
	@mkdir -p build
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "long or reliability" --junit-xml=build/reliability.xml $(ARGS) \
	    || { $(BIN)/python tools/reliability.py build/reliability.xml; exit 1; }
	@$(BIN)/python tools/reliability.py build/reliability.xml docs/explanation/reliability.md

# Old packages warn of newer ones, so warnings are no errors here. The environment is built anew each time.
test-minimum:  ## Run the tests of the package with the oldest versions that pyproject.toml allows (ARGS as for test)
	@rm -rf .venv-minimum && $(PYTHON) -m venv .venv-minimum
	@mkdir -p build && $(PYTHON) tools/minimum_versions.py > build/minimum.txt
	@.venv-minimum/bin/python -m pip install --quiet --disable-pip-version-check --constraint build/minimum.txt \
	    --editable '.[all,test]'
	@OMP_NUM_THREADS=1 .venv-minimum/bin/python -m pytest -n $(WORKERS) -W default --disable-warnings \
	    tests/unit tests/reference tests/property tests/contract tests/integration/test_c*.py $(ARGS)

# Some hours on two cores for all of the core; mutmut goes on where it was stopped. It leaves its copies in mutants.
mutation: venv  ## Change the core in every small way and run its tests on each (ARGS=src/opnp/core/masks.py for one file)
	@OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run --max-children $(WORKERS) \
	    $(foreach file,$(ARGS),'$(subst /,.,$(patsubst src/%.py,%,$(file))).*')
	@$(BIN)/python tools/mutation.py $(RECORDS)/mutation.json

# Every version that is installed, looked up in the database of the Python Package Index; one that cannot be is an error.
audit: venv  ## Look for known vulnerabilities in what is installed; needs the network
	@mkdir -p build
	@$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable > build/installed.txt
	@$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement build/installed.txt

coverage: venv  ## Run all tests with branch coverage: the core wholly, the package to 95 %
	@$(COVERAGE) erase
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report= $(ARGS)
	@$(COVERAGE) report --fail-under=95
	@$(COVERAGE) report --include='src/opnp/core/*' --fail-under=100

lint: venv  ## Check style, format, types and floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: venv  ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

wheel: venv  ## Build the source archive, and from it the wheel, into dist
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation

clean:  ## Remove caches, reports and outputs; .venv stays
	@rm -rf build dist mutants opnp-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .test-report.xml
	@rm -rf .coverage .coverage.* htmlcov
	@find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
