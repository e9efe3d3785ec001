# make demo and make test are all a newcomer needs; each installs what it uses into .venv.
PYTHON ?= python3
VENV := .venv/bin/python
DIR ?= build/gpu-suite
WORKERS ?= auto
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.hpp)

.PHONY: help demo test lint gate mutants bench-cpu tables gpu-suite adopt-results install-check clean

help:
	@echo "make demo           train LeNet-5 on the bundled digits"
	@echo "make test           run all tests, in WORKERS processes (auto: one a core)"
	@echo "make lint           check style and types"
	@echo "make gate           compile every kernel for every architecture and look at the machine code"
	@echo "make mutants        plant faults in the kernels; the tests must catch each"
	@echo "make bench-cpu      speed and memory beside PyTorch's CPU, algorithms beside im2col (needs torch in .venv)"
	@echo "make tables         write the README's tables anew from bench/results"
	@echo "make gpu-suite      on a GPU: golden maps, tests, benchmarks beside PyTorch, into DIR (build/gpu-suite)"
	@echo "make adopt-results  file what gpu-suite left in DIR under bench/results and tests/golden"
	@echo "make install-check  sizes and times of an installation from scratch"
	@echo "make clean          remove what was built"

demo: .venv/installed
	$(VENV) -m gpucnn train lenet5 --overwrite

test: .venv/installed-test
	$(VENV) -m pytest -rs -n $(WORKERS) --dist loadfile

lint: .venv/installed-test
	$(VENV) -m pip install --quiet --disable-pip-version-check ruff mypy
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy

gate: .venv/installed-test
	$(VENV) -m gpucnn.bench.gate

mutants: .venv/installed-test
	$(VENV) -m tests.mutants

bench-cpu: .venv/installed
	$(VENV) -m gpucnn.bench.cpu --json bench/results/cpu/networks.json

tables: .venv/installed
	$(VENV) -m gpucnn.bench.readme

gpu-suite:
	PYTHON=$(PYTHON) bench/gpu_suite --out $(DIR)

adopt-results:
	$(PYTHON) bench/adopt.py $(DIR)

install-check:
	$(PYTHON) bench/install_check.py

clean:
	rm -rf build dist *.egg-info gpucnn/_C*.so .venv/installed*

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python $(SOURCES)
	$(VENV) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-test: .venv/bin/python $(SOURCES)
	$(VENV) -m pip install --quiet --disable-pip-version-check -e ".[test,gate]"
	@touch $@ .venv/installed
