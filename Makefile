# The two commands of the README are `make demo` and `make test`; `make check` is the gate before each commit.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRA  := $(VENV)/.bench
ONLY   ?=
# Half as many again as processors: a good part of the tests waits.
WORKERS ?= $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 2) * 3 // 2)")

# make chaos and make soak: how long. Of the former, with which plan; without a seed one is drawn and printed.
MINUTES ?= 10
SEED    ?=

# make bench: seconds of each measurement, and how often each is done.
SECS   ?= 5
ROUNDS ?= 3

# make fuzz: how many inputs.
RUNS   ?= 1000000

.PHONY: help demo test test-all programs check style types core accept chaos soak fuzz matrix bench pauses profile docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("kdispatch needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Another one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) can't make a virtual environment with pip. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## the main job on real sockets, checked, under a minute
	@$(BIN)/python -m tests.demo.first_tunnel

test: $(STAMP) programs  ## what proves the product, in about four minutes
	KDISPATCH_QUICK=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -rs -m 'not accept and not more' tests

test-all: $(STAMP) programs  ## all tests in their small forms: every server and program, planted mistakes
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -rs -m 'not accept' tests

programs: $(STAMP)  ## get the programs that tests/programs runs: as root, with KDISPATCH_INSTALL=1
	@$(BIN)/python tests/programs/install.py

check: style types core  ## style, types and core tests: before each commit

style: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

core: $(STAMP)
	$(BIN)/python -m coverage erase
	KDISPATCH_QUICK=1 $(BIN)/python -m coverage run -m pytest -m 'not accept and not slow' --ignore tests/core/test_mistakes.py tests/core
	$(BIN)/python -m coverage report --skip-covered

accept: $(STAMP) programs  ## acceptance points in full size; ONLY=name picks some
	$(BIN)/python -m tests.tools.accept $(ONLY)

chaos: $(STAMP)  ## 50,000 random worlds of the core, then all faults on real processes; MINUTES=10 SEED=n
	$(BIN)/python -m tests.tools.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

soak: $(STAMP)  ## a little of everything for long: nothing may grow; MINUTES=60 is kept in docs/results.md
	$(BIN)/python -m tests.tools.soak --minutes $(MINUTES)

fuzz: $(STAMP)  ## RUNS=1000000 inputs for the parsers, by atheris if that is installed
	@$(BIN)/python -m tests.fuzz.run --runs $(RUNS)

matrix: $(STAMP)  ## the tests on each Python that is here, with and without uvloop
	$(BIN)/python -m tests.tools.matrix

# py-spy: only measuring takes it, and says what it does without.
$(EXTRA): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' || echo 'SKIP: pip could not get py-spy'
	@touch $@

# The clients' libraries have an environment of their own: the product needs none of them.
pauses: $(STAMP)  ## what fifty programs do in a pause, half an hour; ONLY="psql;redis-py" picks some; see docs/programs.md
	@$(PYTHON) -m venv $(VENV)-pauses
	@$(VENV)-pauses/bin/python -m pip install --quiet --disable-pip-version-check -r tests/pauses/requirements.txt
	@$(BIN)/python -m tests.pauses.run --python $(VENV)-pauses/bin/python --record $(if $(ONLY),--only "$(ONLY)")

bench: $(EXTRA)  ## how fast, beside three HAProxy; ONLY=bulk,rtt,... SECS=5 ROUNDS=3 PLAIN=1 JSON=file PAGE=1
	@$(BIN)/python -m bench.run --secs $(SECS) --rounds $(ROUNDS) $(if $(ONLY),--only $(ONLY)) $(if $(PLAIN),--plain) \
		$(if $(JSON),--json $(JSON)) $(if $(PAGE),--page)

profile: $(EXTRA)  ## where each process's CPU time goes while bulk runs; PLAIN=1 PAGE=1
	@$(BIN)/python -m bench.profile $(if $(PLAIN),--plain) $(if $(PAGE),--page)

docs: $(STAMP)  ## write the generated pages anew
	$(BIN)/python -m tests.tools.generate_docs

clean:  ## remove what the commands above made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .coverage .coverage.* .hypothesis
	find agent relay shared tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
