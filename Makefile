# RL Notes. `make` lists what there is.
#
# Every command makes the environment that it needs, and renews it when its list of
# packages or the interpreter changes. Another interpreter: make test PYTHON=python3.12

# The first of these that can: the pinned packages want Python 3.11.5 to 3.14.
CAN := import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 15))
PYTHON ?= $(firstword $(foreach each,python3 python3.13 python3.12 python3.11 python3.14,\
  $(shell $(each) -c '$(CAN)' 2>/dev/null && echo $(each))) python3)
PYTHON := $(PYTHON)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# A reader's environment: the book from its stored outputs, without torch.
BOOK := .venv-book
BOOK_READY := $(BOOK)/.ready-$(VERSION)
# The environment of everything else.
ALL := .venv
ALL_READY := $(ALL)/.ready-$(VERSION)
# On top of it the libraries that ours is compared with.
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready-$(VERSION)
# The lowest versions that pyproject.toml promises.
LOWEST := .venv-lowest
LOWEST_READY := $(LOWEST)/.ready-$(VERSION)
# On top of it what changes the library to see which test notices.
MUTANTS := .venv-mutants
MUTANTS_READY := $(MUTANTS)/.ready-$(VERSION)
HOW_MANY ?= 100
SEED ?= 0
GATE := $(ALL)/bin/python tools/gate.py
PEERS_GATE := $(PEERS)/bin/python tools/gate.py
NOTEBOOKS ?=
EXPERIMENTS ?= reinforce trpo ppo reward_model rlhf grpo grpo_family thinking side_by_side

.PHONY: help book test check unit nbval notebooks results figures lab test-peers
.PHONY: sweep mutants test-lowest address test-portability notebooks-gpu gpu-check
.PHONY: real-model clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make book              build the book and print the page to open (no torch)'
	@echo 'make test              everything that CI checks: check, unit, nbval, book, links, peers'
	@echo 'make notebooks         execute every notebook in place and store its outputs;'
	@echo '                       NOTEBOOKS="book/maze.ipynb" names the ones to execute'
	@echo 'make results           run the long experiments again and store their results'
	@echo 'make figures           draw the picture of the first page again'
	@echo 'make lab               open the notebooks in JupyterLab'
	@echo 'make check             ruff and mypy'
	@echo 'make unit              the unit tests and the rules for notebooks'
	@echo 'make nbval             execute copies of the notebooks, compare their outputs'
	@echo 'make test-peers        compare with other libraries, number by number'
	@echo 'make sweep             sample from every causal language model of transformers'
	@echo 'make mutants           change the library at random places: which test notices?'
	@echo 'make test-lowest       the unit tests with the lowest versions that are promised'
	@echo 'make test-portability  nbval as other processors and thread counts compute'
	@echo 'make notebooks-gpu     execute the notebooks on CUDA, where outputs may differ'
	@echo 'make gpu-check         what only a graphics card can show; without one a rehearsal'
	@echo 'make real-model        fetch SmolLM2 and train it for three updates, as its chapter does'
	@echo 'make address NEW=...   move the repository to another address, everywhere'
	@echo 'make clean             remove what was built; the environments stay'

book: $(BOOK_READY)
	@$(BOOK)/bin/python tools/gate.py book

test: $(ALL_READY) $(PEERS_READY)
	@$(GATE) check unit notebooks book site
	@$(PEERS_GATE) peers

check: $(ALL_READY)
	@$(GATE) check

unit: $(ALL_READY)
	@$(GATE) unit

nbval: $(ALL_READY)
	@$(GATE) notebooks

test-peers: $(PEERS_READY)
	@$(PEERS_GATE) peers

sweep: $(ALL_READY)
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(ALL)/bin/python -W ignore tools/sweep_models.py

mutants: $(MUTANTS_READY)
	@$(MUTANTS)/bin/python tools/mutants.py $(HOW_MANY) $(SEED)

# What old versions of others do that newer ones of others deprecate is not our fault.
test-lowest: $(LOWEST_READY)
	@PYTHONPATH=. OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(LOWEST)/bin/python -m pytest -q \
	  -n 2 -W ignore::DeprecationWarning $(shell $(PYTHON) tools/lowest.py tests)

address:
	@$(PYTHON) tools/address.py $(NEW)

test-portability: $(ALL_READY)
	@$(GATE) portability

notebooks-gpu: $(ALL_READY)
	@$(GATE) notebooks_gpu

gpu-check: $(ALL_READY)
	@PYTHONPATH=. $(ALL)/bin/python tools/gpu_check.py

real-model: $(ALL_READY)
	@PYTHONPATH=. $(ALL)/bin/python tools/real_model.py

notebooks: $(ALL_READY)
	@$(ALL)/bin/python tools/run_notebooks.py $(NOTEBOOKS)

results: $(ALL_READY)
	@for name in $(EXPERIMENTS); do echo $$name; \
	  OMP_NUM_THREADS=1 $(ALL)/bin/python -m experiments.$$name || exit 1; done

figures: $(ALL_READY)
	@OMP_NUM_THREADS=1 $(ALL)/bin/python book/figures.py

lab: $(ALL_READY)
	@$(ALL)/bin/jupyter lab book

clean:
	@rm -rf _build build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
	@echo 'Removed what was built. To remove the environments: rm -rf $(ALL) $(BOOK) $(PEERS) $(MUTANTS)'

# $(call environment,FOLDER,LIST): an environment with exactly the packages of a list.
define environment
	@$(PYTHON) -c '$(CAN)' || { echo 'RL Notes needs Python 3.11.5 to 3.14, and $(PYTHON) is' \
	  'none of them. Install one, or name it: make PYTHON=/path/to/python3.13 ...'; exit 1; }
	@echo 'Installing $(2) into $(1), once, with Python $(VERSION) ...'
	@$(PYTHON) -m venv --clear $(1)
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check -r $(2)
endef

$(BOOK_READY): requirements-book.txt
	$(call environment,$(BOOK),requirements-book.txt)
	@touch $@

# The working tree comes last on the path of this environment: there for JupyterLab
# and for a test run by hand, and behind the wheel that the gate puts first.
$(ALL_READY): requirements.txt requirements-book.txt
	$(call environment,$(ALL),requirements.txt)
	@$(ALL)/bin/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), \
	  "rl_notes_working_tree.pth").write_text("$(CURDIR)\n", encoding="utf-8")'
	@touch $@

$(LOWEST_READY): pyproject.toml requirements.txt tools/lowest.py
	@mkdir -p $(LOWEST)
	@$(PYTHON) tools/lowest.py packages > lowest.txt
	$(call environment,$(LOWEST),lowest.txt)
	@rm lowest.txt
	@touch $@

# $(call on_top,FOLDER,LIST): an environment that sees the packages of $(ALL) and adds
# those of a list.
define on_top
	@echo 'Installing $(2) into $(1), once ...'
	@$(PYTHON) -m venv --clear $(1)
	@$(1)/bin/python -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), \
	  "everything_else.pth").write_text(sys.argv[1] + "\n", encoding="utf-8")' \
	  "$$($(ALL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check -r requirements.txt -r $(2)
endef

$(PEERS_READY): $(ALL_READY) requirements-peers.txt
	$(call on_top,$(PEERS),requirements-peers.txt)
	@touch $@

$(MUTANTS_READY): $(ALL_READY) requirements-mutants.txt
	$(call on_top,$(MUTANTS),requirements-mutants.txt)
	@touch $@
