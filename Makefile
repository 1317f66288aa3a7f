# `make demo` needs nothing but python3 and make; `make test` a Chromium too, which `make browser` installs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Most tests compile kernels, on one thread: as many processes as cores, up to four, for memory's sake.
PARALLEL ?= -n auto --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help browser demo tour test test-slow check fix docs bench performance quality reproduce torture clean

help:
	@echo "make demo       shrink the sample model to 8, 4 and 2 bits and run it"
	@echo "make tour       walk through quantization, with its numbers (a minute)"
	@echo "make browser    install Debian's chromium, unless there is one: tests open reports in it"
	@echo "make test       run the tests"
	@echo "make check      format, lint, types and layers"
	@echo "make fix        format and mend what ruff can"
	@echo "make docs       write all tables and pictures of README and docs but performance (some minutes)"
	@echo "make bench        compare with ONNX Runtime, torch and llama.cpp (compiles llama.cpp first)"
	@echo "make performance  measure anew what docs/performance.md shows (an hour or two)"
	@echo "make quality TEXT=... CALIBRATION=... SEEN=...  measure anew what docs/quality.md shows (40 minutes)"
	@echo "make reproduce MODEL=org/name  measure a model on this machine: quality, speed, memory, into reproduce/"
	@echo "make test-slow  run the tests that take minutes"
	@echo "make torture    try to break every promise of docs/reliability.md (an hour)"

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=25.1"
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable ".[hf]" --group dev
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --group bench
	@touch $@

demo: $(VENV)/.run
	$(BIN)/python scripts/demo.py

tour: $(VENV)/.run
	$(BIN)/python scripts/tour.py

browser:
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ apt-get update && apt-get install --yes --no-install-recommends chromium; } || \
		{ echo "no Chromium: run make browser as root, or install one" >&2; exit 1; }

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest -m "not slow and not emitted" $(PARALLEL) tests/kernels

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

torture: $(VENV)/.dev
	$(BIN)/python scripts/torture.py --markdown docs/reliability.md

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=kernels $(BIN)/lint-imports
	$(BIN)/python scripts/update_docs.py --check

docs: $(VENV)/.dev
	$(BIN)/python scripts/demo.py --markdown README.md
	$(BIN)/python scripts/update_docs.py
	$(BIN)/python scripts/draw_pictures.py
	$(BIN)/python scripts/update_evaluation.py
	$(BIN)/python scripts/digits.py --markdown docs/quantization.md

bench: $(VENV)/.bench
	$(BIN)/python scripts/bench_peers.py

performance: $(VENV)/.bench
	$(BIN)/python scripts/update_performance.py

quality: $(VENV)/.bench
	$(BIN)/python scripts/bench_quality.py --text $(TEXT) --calibration $(CALIBRATION) $(if $(SEEN),--seen $(SEEN))
	$(BIN)/python scripts/qat_lm.py -o demo/qat --overwrite --text $(CALIBRATION) $(if $(SEEN),--text $(SEEN)) \
		--judge $(TEXT) --markdown docs/quality.md

reproduce: $(VENV)/.run
	@test -n "$(MODEL)" || { echo "make reproduce MODEL=org/name (or a folder) [TEXT=FILE] [FLAGS=...]"; exit 2; }
	$(BIN)/python scripts/reproduce.py "$(MODEL)" $(if $(TEXT),--text $(TEXT)) $(FLAGS)

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
