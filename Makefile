# `make demo` and `make test` are all a newcomer needs; both make `.venv` first and are quick the second time.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint sanitize clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: .venv/installed lint sanitize
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The kernels' tests once more, on kernels built with the address and undefined-behaviour sanitizers.
sanitize: .venv/installed
	mkdir -p build
	$(BIN)/cmake -S native -B build/sanitize -DCHATGLM3_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > build/sanitize.log
	$(BIN)/cmake --build build/sanitize --parallel 2 >> build/sanitize.log
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=halt_on_error=1 CHATGLM3_TEST_NATIVE=build/sanitize $(BIN)/python -m pytest tests/kernels

.venv/installed: pyproject.toml constraints.txt $(wildcard native/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,grammar,recipes,tables,train]"
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
