# Each target sets up .venv from the lock itself; only Python >= 3.11 and make are needed.
PYTHON ?= python3
JOBS ?= 2
# Tables of `make report`, all by default: make report IDS="ega/table1_cub dfg"
IDS ?=
BIN := .venv/bin
# One thread per process: JOBS processes already fill the machine, and spinning threads would only hinder each other.
export OMP_NUM_THREADS ?= 1

.PHONY: report test bench docs

report: .venv/ready
	$(BIN)/repro run $(IDS) --preset smoke --jobs $(JOBS)

# Snakemake is found at the end of PATH, as on a user's machine.
test: export PATH := $(PATH):$(CURDIR)/.venv-cluster/bin
test: .venv/ready .venv-cluster/ready .venv-docs/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout 300 notebooks

# On an idle machine; the committed results and the README's speed table are renewed.
bench: .venv/bench
	$(BIN)/repro bench
	$(BIN)/repro report --preset quick

# The site in build/docs, offline.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# In an environment of its own: what Snakemake needs is nothing that notebooks run with.
.venv-cluster/ready: requirements-cluster.lock
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-cluster.lock
	touch $@

# In an environment of its own too: the API reference is read from the source, nothing is imported.
.venv-docs/ready: requirements-docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	touch $@

# The peers are compared with, never depended on: --no-deps keeps the locked versions untouched.
.venv/bench: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps grad-cam==1.5.7 torchcam==0.5.0 ttach==0.0.3
	touch $@
