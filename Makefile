# Incident Relay: one line a habit. `make setup` is implied by every other target.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
CACHE  := .cache
STAMP  := $(VENV)/.installed

VERSION   = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' relay/__init__.py)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
IMAGE    ?= incident-relay:$(VERSION)
BASE     ?= 3.13-slim-trixie
COMMA    := ,
BUILDER  ?= $(shell docker info >/dev/null 2>&1 && echo docker build || echo buildah build)

.PHONY: setup fmt check test demo bench prove lock clean kafka programs image chart manifests e2e-kube

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
	$(BIN)/uv pip compile --group pyproject.toml:build --constraint requirements-dev.lock --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet \
	  --output-file requirements-build.lock

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
	$(BIN)/python -m pytest -m "prove and not kube" -s $(REPORT)
	$(BIN)/python -m tests.breaks

image: ## the container image, by Docker or Buildah; IMAGE=name:tag, BASE=3.13-slim-trixie, CA=bundle behind a TLS proxy
	$(BUILDER) --build-arg PYTHON=$(BASE) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
	  $(if $(CA),--secret id=ca$(COMMA)src=$(CA)) --tag $(IMAGE) .

HELM ?= $(CACHE)/kube/bin/helm

$(CACHE)/kube/bin/helm: | setup
	$(BIN)/python -c 'from tests.kube import tools; tools.fetch()'

chart: setup $(HELM) ## what is made for the Helm chart, then the chart itself, into dist/
	$(BIN)/python -m tests.pages
	$(HELM) lint --strict helm/incident-relay
	$(HELM) package helm/incident-relay --destination dist

manifests: setup $(HELM) ## deploy/kubernetes/relay.yaml, for those without Helm
	{ sed -n '/^---/q;p' deploy/kubernetes/relay.yaml; \
	  $(HELM) template relay helm/incident-relay --namespace incident-relay --values deploy/kubernetes/values.yaml --skip-tests; \
	} > deploy/kubernetes/relay.yaml.new && mv deploy/kubernetes/relay.yaml.new deploy/kubernetes/relay.yaml

sbom: setup ## what the image is made of, as CycloneDX; SBOM=file
	$(BIN)/python -m tests.kube sbom $(or $(SBOM),$(CACHE)/sbom.json)

e2e-kube: setup kafka ## the image on a real one-node Kubernetes; skips, by name, where this machine lacks the rights; WHOLE=1 for all
	$(BIN)/python -m pytest tests/kube -m $(if $(WHOLE),kube,"kube and not prove") --capture=sys --durations=0 --durations-min=1 $(REPORT)

bench: setup kafka ## ratios against a floor in the same run
	$(BIN)/python -m tests.bench

demo: setup $(if $(KAFKA),kafka) ## the main job end to end, without an account; KAFKA=1 sends through a real broker as well
	$(if $(KAFKA),$(BIN)/python -m tests.support.with_broker) $(BIN)/relay demo

clean:
	rm -rf $(VENV) $(CACHE)
