# make demo: install, train on the embedded data set, evaluate, caption. make test: the whole suite.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: install demo test clean

install: .venv/.installed

.venv/.installed: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

demo: install
	$(BIN)/captioner data draw
	$(BIN)/captioner train experiment=demo run_dir=$(RUN)
	$(BIN)/captioner evaluate $(RUN) data.split=test
	$(BIN)/captioner caption 'datasets/shapes/images/test_0000*.png' --model $(RUN)

test: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadfile

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
