# Incident Relay: one line a habit. `make setup` is implied by every other target.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
CACHE  := .cache
STAMP  := $(VENV)/.installed

.PHONY: setup fmt check test demo bench prove lock clean kafka programs

setup: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

lock: ## resolve the ranges of pyproject.toml again, without any index address in the result
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --upgrade \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --upgrade \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet --output-file requirements-dev.lock

fmt: setup
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

check: setup ## never edits
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

kafka: setup ## a real Apache Kafka for the tests, from Maven Central; without Java or Maven its tests are skipped, by name
	$(BIN)/python -m tests.support.broker || true

programs: setup ## Prometheus and Chromium for the tests, Debian's packages; without them their tests are skipped, by name
	$(BIN)/python -m tests.support.packages || true

test: setup kafka programs ## every test but those of `prove`; REPORT=-q and the like go to pytest
	$(BIN)/python -m pytest $(REPORT)

prove: setup kafka programs ## what takes longer than a minute: many kills, long outages, each guarantee broken on purpose
	$(BIN)/python -m pytest -m prove -s $(REPORT)
	$(BIN)/python -m tests.breaks

bench: setup kafka ## ratios against a floor in the same run
	$(BIN)/python -m tests.bench

demo: setup $(if $(KAFKA),kafka) ## the main job end to end, without an account; KAFKA=1 sends through a real broker as well
	$(if $(KAFKA),$(BIN)/python -m tests.support.with_broker) $(BIN)/relay demo

clean:
	rm -rf $(VENV) $(CACHE)
