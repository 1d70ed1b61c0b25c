# make          set up .venv, then generate, train and evaluate on the measurements in data/raw
# make test     the same environment and what developers need, then the tests
# make lint     the same, then ruff: lint and format
# make folds    the five-fold table of docs/results.md on data/raw
# make clean    delete .venv and caches; measurements, processed data and runs stay

PYTHON ?= python3
BIN := .venv/bin

.PHONY: all test lint folds clean

all: .venv/installed
	$(BIN)/python generate_dataset.py
	$(BIN)/python train_model.py
	$(BIN)/python evaluate_model.py

test: .venv/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

folds: .venv/installed
	$(BIN)/python benchmarks/cross_validation.py

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; give one with: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/pip install -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
