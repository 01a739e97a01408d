# `make demo` and `make test` do all the set-up on a bare machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check soak chaos hashed pins data configs clean

demo: .venv/installed  ## train the digits config
	$(BIN)/dltrain fit configs/digits.yaml

test: .venv/installed-test  ## the whole suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed-test  ## lint, types, and the tests that take no processes and no training in full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow"

soak: .venv/installed-test  ## 200 runs that are killed and resumed, and tens of thousands of damaged files; most of an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak
	DLTRAIN_FUZZ=10000 $(BIN)/python -m pytest -n 2 --dist load tests/faults/test_fuzz.py

chaos: .venv/installed-test  ## ckpt-chaos (PyPI) kills a training at each of its file operations, and judges how it goes on
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps ckpt-chaos==0.1.8
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos

data: .venv/installed-test  ## make the files that the configs train on; espeak-ng speaks those of spoken_digits.yaml
	$(BIN)/python -m tests.make_data data
	$(BIN)/python -m tests.make_texts data
	$(BIN)/python -m tests.make_pairs data
	$(BIN)/python -m tests.make_speech data/spoken_digits

configs: data  ## train every shipped config in full and compare with its expected result
	$(BIN)/python -m tests.run_configs

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

hashed:  ## install what make test needs, each file but torch's checked by its SHA-256: for CI (Linux on x86-64, Python 3.11)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-ci.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[test]'
	touch .venv/installed .venv/installed-test

pins: .venv/installed-test  ## write requirements-ci.txt anew, after a change to pyproject.toml or constraints.txt
	$(BIN)/python .ci/pin.py

clean:
	rm -rf .venv data build dist .pytest_cache .mypy_cache .ruff_cache
