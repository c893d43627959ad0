# posebook: `make demo` and `make test` need only Python 3.11+; each sets up .venv by itself.
# PYTHON=... chooses the interpreter to build .venv from; otherwise a suitable one is looked for.
PYTHON ?=
PY     := .venv/bin/python
SETUP  := setup.py settings.ini constraints.txt .ci/setup
# What the tools would cache in the home folder stays inside .venv instead.
CACHES := MPLCONFIGDIR="$(CURDIR)/.venv/cache/matplotlib"
# An installed script breaks in a path with a space where pip is old: call its function instead.
COMMAND := 'import sys; from posebook.cli import main; sys.argv[0] = "posebook"; sys.exit(main())'

.DEFAULT_GOAL := help
.PHONY: help setup demo test docs lab bench export clean

help: ## Show this list
	@echo "posebook: a book of notebooks that is a library"
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: .venv/.dev ## Set up .venv with everything needed to work on the book

demo: .venv/.runtime ## Fit the Gaussian priors to real mocap and write outputs/demo/index.html
	@$(CACHES) "$(PY)" -c $(COMMAND) demo

test: .venv/.dev ## Run every chapter and tests/; ends with `N passed, N failed`
	@"$(PY)" .github/run_notebooks.py

docs: .venv/.dev ## Check the pages and, where Quarto is installed, build the site into _docs
	@"$(PY)" .github/check_docs.py
	@if command -v quarto >/dev/null 2>&1; then rm -rf _proc && touch README.md && \
	  "$(PY)" -c 'from nbdev.quarto import nbdev_docs; nbdev_docs.__wrapped__()' && \
	  echo "The site is in _docs/index.html"; \
	else echo "The pages were checked; to build the site, install Quarto (https://quarto.org)"; fi

lab: .venv/.dev ## Open the chapters in JupyterLab
	@"$(PY)" -m jupyterlab nbs

bench: .venv/.bench ## Run the benchmarks beside their peers; BENCH=rotations for one
	@"$(PY)" benchmarks/run.py $(BENCH)

export: .venv/.dev ## Write posebook/ and README.md from nbs/, and clean the notebooks
	@"$(PY)" .github/export.py

clean: ## Remove what was built; .venv and the sources stay
	rm -rf _docs _proc build dist outputs posebook.egg-info .pytest_cache .hypothesis .ruff_cache
	find nbs posebook tests benchmarks .github -name __pycache__ -prune -exec rm -rf {} +

# A stamp is written when its set-up has finished; a change to what it was made from outdates it.
.venv/.runtime: $(SETUP)
	@PYTHON="$(PYTHON)" sh .ci/setup runtime

.venv/.dev: $(SETUP)
	@PYTHON="$(PYTHON)" sh .ci/setup dev

.venv/.bench: $(SETUP)
	@PYTHON="$(PYTHON)" sh .ci/setup bench
