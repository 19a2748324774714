# Everything a fresh Linux machine with Python 3.11 and make needs:
#   make demo   set up, then run the whole path on bundled images (under 2 minutes)
#   make test   set up, then run all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One torch thread per process: two processes that take all cores are many times slower.
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: venv demo test test-slow test-ort check docs bench clean

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml devices/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ./devices --editable '.[cpu,demo,dev]'
	touch $@

demo: venv
	$(BIN)/edgecil demo

test: check
	$(TEST_ENV) $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: venv
	$(TEST_ENV) $(BIN)/python -m pytest -q -m slow

test-ort: venv
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python -m onnxruntime_matrix.run 1.16.3 1.23.2 newest

# What is made from the sources: the cards of the methods.
docs: venv
	$(BIN)/python -m edgecil.reporting.cards docs/methods.md

bench: venv
	$(BIN)/python tests/benchmarks/training_speed.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
