# A thin front: each target makes the environment if it has to, then calls one command.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: help env reproduce test site lab export clean
help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

$(READY): settings.ini setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

env: $(READY)  ## the environment, in .venv

reproduce: $(READY)  ## every paper's headline sweep, figures and site; PAPER=name for all of one paper
	$(BIN)/neurocompanion reproduce $(if $(PAPER),--paper $(PAPER)) $(ARGS)

test: $(READY)  ## everything that continuous integration runs
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(ARGS)

site: $(READY)  ## the pages, in _docs
	$(BIN)/neurocompanion site

lab: $(READY)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

export: $(READY)  ## notebooks to package and README, cleaned
	$(BIN)/nbdev_export
	$(BIN)/python -c 'from neurocompanion.sweeps.paper import write_cells; write_cells()'
	$(BIN)/nbdev_clean
	$(BIN)/neurocompanion site --readme

clean:  ## what was built (results stay)
	rm -rf _docs _proc build *.egg-info .pytest_cache .ruff_cache
