# `make run` and `make test` set up all they need. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch for `make test`, the release that the tests were run with. Where pip would fetch its CUDA build, name the index of
# CPU builds (see pytorch.org, "Get started"): make test TORCH_INDEX=URL
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint bench quality faults soak docs screenshots clean

help:  ## This list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.station  ## Set up what the station needs and run the demo: a line with planted defects, MQTT and all
	$(BIN)/station demo

test: $(VENV)/.dev $(VENV)/.system  ## Set up everything and run all tests
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## Formatter, linter, types, oldest Python
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/vermin --quiet --no-tips --target=3.10- --violations station engines train

bench: $(VENV)/.dev $(VENV)/.system  ## Speed on this machine, beside other programs too: up to 25 minutes, and a summary
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

quality: $(VENV)/.dev  ## Detection quality: trained from scratch on two textures, and the bundled engine on its line
	$(BIN)/python -m benchmarks.quality --short
	$(BIN)/python benchmarks/demo_line.py

faults: $(VENV)/.dev $(VENV)/.system  ## Inject every fault into running stations: one line each, injected, expected, seen
	FAULT_KILLS=$${FAULT_KILLS:-50} FAULTS_REPORT=docs/reliability.md \
	  $(BIN)/python -m pytest tests/faults -q --no-header $(PYTEST_ARGS)

soak: $(VENV)/.dev $(VENV)/.system  ## Endurance: ten minutes at full speed, then a week of frames; half an hour and more
	$(BIN)/python -m benchmarks.soak

docs: $(VENV)/.dev  ## Write what is made from the code (pages, AsyncAPI, manual pages, pictures) and build the site
	for maker in docs/make_*.py; do PYTHONPATH=. $(BIN)/python $$maker || exit 1; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

screenshots: $(VENV)/.dev $(VENV)/.system  ## Take the documentation's screenshots anew, by the tests that make them
	SCREENSHOTS=1 $(BIN)/python -m pytest -q tests/e2e/test_dashboard_pages.py tests/e2e/test_reports.py \
	  tests/e2e/test_nodered.py tests/station/watching/test_screen.py tests/test_docs_tutorial.py $(PYTEST_ARGS)

clean:  ## Remove the environment
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than 3.10 or missing; install python3 or pass PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.station: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -c 'import torch' 2>/dev/null || \
	  $(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.station

# Programs that tests run: a real broker, a real RTSP server, a real GStreamer. Installed when we may, else told.
$(VENV)/.system: $(BIN)/python deploy/test-packages.txt
	@sh deploy/test-packages.sh
	@touch $@
