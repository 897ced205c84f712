# Every target creates what it needs; `make demo` is the place to start.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# llama-cpp-python is compiled here, and pip keeps the wheel: one that runs on every x86-64 processor with AVX2.
export CMAKE_ARGS ?= -DGGML_NATIVE=OFF

.PHONY: run demo test check bench clean help

help: ## Show the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-8s %s\n", $$1, $$2}'

run: $(INSTALLED) ## API, worker and serving host on http://127.0.0.1:8000 until Ctrl-C
	$(BIN)/bitmill up

demo: $(INSTALLED) ## Quantize a small model twice, measure both, ask them a question
	$(BIN)/bitmill demo

test: $(INSTALLED) ## The whole test suite
	$(BIN)/python -m pytest

check: $(INSTALLED) ## Linters, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED) ## The README's figures, each as a ratio to a peer run beside it
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean: ## Remove the environment; data stays
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@
