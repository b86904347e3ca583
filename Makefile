# Every target sets up what it needs in .venv. `make` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# Which torch to install first: a plain wheel for CPUs; TORCH="torch" takes the newest with its CUDA libraries.
TORCH ?= torch==2.13.0
# Extra arguments of a verb, e.g. make train ARGS="experiment=nano_sft seed=1"
ARGS ?=

BIN := .venv/bin
READY := .venv/.ready

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Create .venv: torch first, then the package with its development tools

# Stamped, so that it runs again only when pyproject.toml changes. A torch that is there already is kept.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(READY)

demo: $(READY) ## Train, gate, evaluate and report on the packaged nano backbone (6 minutes, CPU)
	$(BIN)/twn demo $(ARGS)

test: $(READY) ## The CPU tests, without those marked slow (20 minutes)
	$(BIN)/python -m pytest $(ARGS)

test-all: $(READY) ## Every test: slow ones, and GPU ones where there is a GPU
	$(BIN)/python -m pytest -o addopts="-ra --strict-markers --strict-config" tests $(ARGS)

trust: $(READY) ## Faults, fuzzing, load, and a soak of 30 minutes, CPU; TRUST=full takes all, hours
	$(BIN)/python -m tests.trust.run $(ARGS)

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy
	$(BIN)/mypy

imports: $(READY) ## import-linter: imports point one way, Hydra stays in config.py
	$(BIN)/lint-imports

config: $(READY) ## Print the resolved configuration, e.g. ARGS="experiment=nano_rl"
	$(BIN)/twn config $(ARGS)

train: $(READY) ## Train one stage, e.g. ARGS="experiment=nano_sft"
	$(BIN)/twn train $(ARGS)

nano-suite: $(READY) ## Score MMEB-nano, 1,000 queries of nine meta-tasks, under every router (5 minutes, CPU)
	$(BIN)/twn evaluate task=mmeb_nano/all data.test_pairs=1000 paths.run_dir=outputs/nano-suite $(ARGS)

evaluate: $(READY) ## Evaluate under every router, e.g. ARGS="adapters.init_from=RUN"
	$(BIN)/twn evaluate $(ARGS)

sweep: $(READY) ## One process per job, e.g. ARGS="experiment=nano_sft sweep=lora_rank"
	$(BIN)/twn train --multirun $(ARGS)

report: $(READY) ## Tables and figures of finished runs, e.g. ARGS="outputs/sft/nano_sft/*"
	$(BIN)/twn report $(ARGS)

bench: $(READY) ## Speed beside peers on the same work (12 minutes, CPU), e.g. ARGS="decode --rows 16"
	$(BIN)/twn bench cpu $(ARGS)

notebooks: $(READY) ## Execute the notebooks in place
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

docs: $(READY) ## Build the documentation site in build/site; notebooks run on outputs/demo, where there is one
	rm -rf build/notebooks
	test ! -d outputs/demo/evaluate || TQDM_DISABLE=1 PYTHONWARNINGS="ignore:IProgress not found" \
		$(BIN)/jupyter nbconvert --to html --execute notebooks/*.ipynb --output-dir build/notebooks
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: ## Resolve all dependencies anew into constraints.txt, which CI installs; run .ci/run afterwards
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	env -u PIP_CONSTRAINT build/lock/bin/python -m pip install --quiet "$(TORCH)"
	env -u PIP_CONSTRAINT build/lock/bin/python -m pip install --quiet -e ".[dev]"
	echo "# What CI installs (Linux, Python 3.11): PIP_CONSTRAINT=constraints.txt make setup. Written by: make lock" > constraints.txt
	build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' >> constraints.txt

audit-deps: ## Look the locked versions up among the known vulnerabilities (needs the network)
	test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install --quiet pip-audit; }
	build/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

sbom: $(READY) ## Write build/sbom.json, the installed packages with versions and licences as CycloneDX
	mkdir -p build
	sed "s/^dynamic = .*/version = \"$$($(BIN)/python -c 'import twn_lightning; print(twn_lightning.__version__)')\"/" \
		pyproject.toml > build/pyproject.toml
	$(BIN)/cyclonedx-py environment .venv --pyproject build/pyproject.toml --mc-type library --output-reproducible \
		--short-PURLs -o build/sbom.json $(ARGS)

reference: $(READY) ## Write conf/reference.yaml again, after a change of the configuration
	$(BIN)/twn config --write-reference

clean: ## Remove caches and builds; keeps .venv and outputs
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage htmlcov
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: docs help setup demo nano-suite test test-all trust lint types imports config train evaluate sweep report bench notebooks lock audit-deps sbom reference clean
