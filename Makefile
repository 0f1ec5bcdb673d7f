PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LEARNS := $(VENV)/.installed-learning
MODEL  ?= smollm2
TORCH  ?= torch==2.13.0
# Most tests wait: for an engine, a clock, a process. Files stay whole, since what a file starts its tests share.
TESTERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install install-learning run test soak check format lint types contracts audit proto lock bench example-capitals example-goal clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 19

install: $(STAMP)  ## make .venv and install everything into it, hash by hash

$(STAMP): pyproject.toml requirements/dev.txt scripts/venv.sh
	@PYTHON="$(PYTHON)" sh scripts/venv.sh $(VENV)
	@echo "installing into $(VENV): about a minute, once"
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

install-learning: $(LEARNS)  ## add what learning jobs train with, and torch: TORCH says which (docs/dependencies.md)

$(LEARNS): $(STAMP) requirements/learning.txt
	@echo "installing into $(VENV): a minute or two, once; torch is the largest part"
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements/learning.txt
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

run: install  ## fetch the default model, start the coordinator, serve it
	@$(BIN)/modelops pull $(MODEL)
	@exec $(BIN)/modelops serve --load $(MODEL)

test: install  ## every test that needs no program besides Python, with the real model
	@$(BIN)/modelops pull --quiet $(MODEL)
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder -m "not alone"
	$(BIN)/python -m pytest -m alone

soak: install  ## the long runs of what `make test` runs short, with what each of them saw
	@$(BIN)/modelops pull --quiet $(MODEL)
	CHAOS_OPERATIONS=1000 CHAOS_SWAPS=50 CHAOS_LOADS=30 CHAOS_FAULTS=500 $(BIN)/python -m pytest -rP \
		tests/chaos/test_memory.py tests/chaos/test_swap.py tests/chaos/test_memory_returns.py tests/chaos/test_faults.py
	PLACEMENT_CASES=50000 SCHEDULER_LIVES=1000 $(BIN)/python -m pytest --timeout 1200 -q \
		tests/serving/test_placement.py tests/serving/test_bill.py tests/serving/test_scheduler_machine.py
	FUZZ_MESSAGES=100000 SCHEMATHESIS_EXAMPLES=500 $(BIN)/python -m pytest -rP --timeout 1200 \
		tests/contract/test_fuzz.py tests/contract/test_schemathesis.py
	AVAILABILITY_KILLS=20 AVAILABILITY_RESTARTS=3 AVAILABILITY_MODELS=4 $(BIN)/python -m pytest -rP --timeout 1200 \
		tests/chaos/test_availability.py
	LEARNING_KILLS=10 $(BIN)/python -m pytest -rP --timeout 1200 tests/chaos/test_learning.py
	QUALITY_KILLS=5 $(BIN)/python -m pytest -rP --timeout 1200 tests/chaos/test_quality.py
	GATE_ALL=1 $(BIN)/python -m pytest -rP --timeout 1200 tests/learning/test_gate.py -m engine
	JOBS_SEEDS=40 $(BIN)/python -m pytest -q --timeout 1200 tests/store/test_durable_at_once.py
	$(BIN)/python bench/forms.py
	$(BIN)/python bench/streams.py

check: lint types contracts proto-check audit test  ## what a contributor runs before sending a change

format: install  ## put the sources into the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports

audit: install  ## are there known holes in what we depend on?
	$(BIN)/python -m pip check
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements/runtime.txt

proto: install  ## make the gRPC modules from proto/model_ops.proto
	$(BIN)/python scripts/proto.py

proto-check: install
	$(BIN)/python scripts/proto.py --check

lock: install  ## lock the newest releases that pyproject.toml admits
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements/runtime.txt
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --extra dev --constraint requirements/runtime.txt --output-file requirements/dev.txt
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --extra learning --extra examples --no-emit-package torch --constraint requirements/dev.txt --output-file requirements/learning.txt

bench: install  ## what the coordinator adds over the engine called directly (docs/benchmarks.md)
	$(BIN)/python bench/gateway.py

example-capitals: install-learning  ## fine-tune the default model with a coordinator that runs (examples/capitals)
	@$(BIN)/python examples/capitals/run.py

example-goal: install-learning  ## wish that the default model knows them, with a coordinator that runs (examples/goals)
	@$(BIN)/modelops goals create quality smollm2 --train examples/capitals/train.jsonl \
	  --eval examples/capitals/heldout.jsonl --regression examples/capitals/regression.jsonl \
	  --regression-metric contains --target 0.95 --watch-seconds 30 --max-jobs 4 --watch

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
