# make demo: install, train on the built-in dataset, evaluate, caption.
# make test: ruff, mypy and all tests but the slow ones. make test-avx2: the numerical tests, restricted to AVX2.
# make battery: all tests of reliability, the slow ones as well; writes the table in docs/reliability.md.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: install demo test test-avx2 battery audit clean

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
	$(BIN)/python -m pytest -n auto --dist loadfile

# The test files that use torch, restricted to AVX2: no AVX-512, no bfloat16 instructions.
test-avx2: .venv/.tested
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	$(BIN)/python -m pytest -n auto --dist loadfile $$(grep -rl torch tests --include='test_*.py')

battery: .venv/.tested
	$(BIN)/python -m pytest -m reliability -n auto --dist worksteal --hypothesis-profile battery \
	--reliability-page=docs/reliability.md $$(grep -rl mark.reliability tests --include='test_*.py')

# Known vulnerabilities of the locked dependencies; no error if the database or the index cannot be reached.
audit: .venv/.installed
	test -d .venv/audit || $(BIN)/python -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet 'pip-audit>=2.10,<3' || true
	.venv/audit/bin/python .ci/audit.py requirements-lock.txt

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
