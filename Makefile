# The targets are described in docs and by `make help`. Everything happens in .venv; nothing outside is changed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILED := knowledge/_compiled.json
# A version manager's shim may stand on PATH without a Python behind it, so each candidate has to run.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& { echo $$p; break; }; done)
KNOWLEDGE := $(shell find knowledge -type f \( -name '*.yaml' -o -name '*.json' -o -name '*.md' -o -name '*.py' \) \
	-not -name _compiled.json)

RUN_LOG ?= tests/data/lab/tp2-truncated
INCIDENTS ?=
FUZZ_SECONDS ?= 2
# What `make test` may take as a whole; the real server comes last and gets what is left.
STARTED := $(shell date +%s)
TEST_SECONDS ?= 700
VERIFY_SECONDS ?= 3600
ENDURE_SECONDS ?= 21600

.PHONY: help install run test verify endure lint format bench lab calibrate lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | expand -t 12

install: $(STAMP) $(COMPILED) ## .venv with the command vllm-diagnose in it

# The lock first, every file checked against its hash, build backend included; then the project itself, which has no
# hash, without letting pip fetch anything for it.
$(STAMP): constraints.txt pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11, 3.12 or 3.13 with venv is needed; none was found on PATH." >&2; exit 3; }
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --require-hashes -r constraints.txt
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	touch $@

$(COMPILED): $(STAMP) $(KNOWLEDGE)
	$(BIN)/python -m knowledge.compiler
	@touch $@

run: install ## a diagnosis of a real log in both languages, and what to try next
	@$(BIN)/python scripts/show.py $(RUN_LOG)

test: install lint ## unit and end-to-end tests, lint, types, layers, knowledge, a real server (at most 12 minutes)
	timeout --signal=INT 660 $(BIN)/python -m pytest -q -n 2 --dist loadfile \
		-m "not slow and not lab and not postgres and not browser and not mcp and not endure" \
		--fuzz-seconds=$(FUZZ_SECONDS)
	$(BIN)/vllm-diagnose kb check
	@$(BIN)/python scripts/verify.py --live --seconds $$(( $(TEST_SECONDS) + $(STARTED) - $$(date +%s) ))

lint: install ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

verify: install ## slow tests, real server, PostgreSQL, short fuzz, wheel (at most 60 minutes)
	@$(BIN)/python scripts/verify.py --seconds $(VERIFY_SECONDS) $(if $(EXTENDED),--extended)

endure: install ## long fuzz, soak and kill runs, by hand
	@$(BIN)/python scripts/verify.py --endure --seconds $(ENDURE_SECONDS)

bench: install ## speeds; asserts nothing
	@for script in benchmarks/*.py; do [ -e "$$script" ] || continue; \
		echo "== $$script"; PYTHONPATH=. $(BIN)/python "$$script"; done

lab: ## a real vLLM server (CPU) and a tiny model in .lab, for tests
	@scripts/lab_setup.sh .lab

calibrate: install ## fit the confidence to labelled incidents: make calibrate INCIDENTS=file.jsonl
	@[ -n "$(INCIDENTS)" ] || { echo "Say which labelled incidents: make calibrate INCIDENTS=file.jsonl" >&2; exit 2; }
	$(BIN)/python -m assistant.diagnosis.calibrate $(INCIDENTS)

lock: install ## resolve the dependencies anew, with hashes and without a registry's address
	$(BIN)/uv pip compile pyproject.toml --group dev --group build --group lock --extra postgres --extra telemetry --generate-hashes \
		--no-emit-index-url --no-header --universal --python-version 3.11 --upgrade --quiet -o constraints.txt

clean: ## what was built; the laboratory stays
	rm -rf $(VENV) $(COMPILED) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
