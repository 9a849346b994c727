# Every command sets up what it needs in .venv and pins every version; delete .venv to begin anew.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: run test lint types types-installed unit speed clean

run: $(VENV)/.installed
	$(BIN)/memdefense run --defense rmft --attack prefix

test: lint types types-installed unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

unit: $(VENV)/.installed-test
	$(BIN)/pytest -q -n auto --maxprocesses 4

# mypy cannot follow an editable install's hook, so the plugins and their tests are typed against a plain one too.
types-installed: $(VENV)/.installed-test
	rm -rf $(VENV)-plain && $(PYTHON) -m venv --without-pip $(VENV)-plain
	rm -rf build *.egg-info
	$(PIP) install --no-deps --no-index --no-build-isolation --target "$$(echo $(VENV)-plain/lib/python*/site-packages)" .
	rm -rf build *.egg-info
	$(BIN)/python scripts/types_installed.py $(VENV)-plain

speed: $(VENV)/.installed-test
	$(BIN)/python scripts/speed.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Entry points that an earlier build left in the checkout would hide the installed ones from a python started in it.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	rm -rf *.egg-info
	$(PIP) install -c constraints.txt "setuptools>=77" wheel
	$(PIP) install -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-plain build *.egg-info .mypy_cache .ruff_cache .pytest_cache
