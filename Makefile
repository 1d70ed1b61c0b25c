# make          set up .venv, then generate, train and evaluate on the measurements in data/raw
# make test     the same environment, then the tests
# make folds    the README's five-fold table on data/raw

PYTHON ?= python3
BIN := .venv/bin

.PHONY: all test folds clean

all: .venv/installed
	$(BIN)/python generate_dataset.py
	$(BIN)/python train_model.py
	$(BIN)/python evaluate_model.py

test: .venv/installed
	$(BIN)/python -m pytest -q

folds: .venv/installed
	$(BIN)/python benchmarks/cross_validation.py

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; give one with: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -r requirements.txt
	touch $@

clean:
	rm -rf .venv runs data/processed
