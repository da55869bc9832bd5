# BackendAI Chat: `make up` runs it, `make test` tests it, `make help` lists the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
CODE := deploy docs gateway services tests
GROUPS := gateway chat billing agent speech translate local local-ai dev uv
LOCK := pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" --quiet
# Writes the stubs of every .proto file into the folder that follows it.
PROTOC = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto $$(find proto/backendai -name '*.proto' | sort) \
	$(foreach kind,python grpc_python mypy mypy_grpc,--$(kind)_out=$(if $(findstring mypy,$(kind)),quiet:)$(1))

# A package index that is set for pip holds for uv too.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

.PHONY: help
help: ## List what can be done here.
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- run ---

.PHONY: up
up: $(VENV)/.local ## Run everything here; Ctrl-C stops it. GATEWAYS=2 CHATS=2 BILLINGS=2 AGENTS=2 runs more than one of each.
	@exec $(BIN)/python -m deploy.local

.PHONY: token
token: $(VENV)/.local ## Print a token for the API: make token USER=alice WORKSPACE=<uuid> ROLE=owner.
	@$(BIN)/python -m deploy.local.tokens \
	  $(if $(filter command line,$(origin USER)),--user "$(USER)") \
	  $(if $(WORKSPACE),--workspace "$(WORKSPACE)") $(if $(ROLE),--role "$(ROLE)")

.PHONY: certs
certs: $(VENV)/.local ## Make certificates for a trial of mutual TLS between the services.
	@$(BIN)/python -m deploy.local.certs

.PHONY: migrate
migrate: $(VENV)/.local ## Bring the database that MIGRATION_DATABASE_URL or DATABASE_URL names up to date.
	@test -n "$$MIGRATION_DATABASE_URL$$DATABASE_URL" || { echo "Set DATABASE_URL to the database to migrate (make up migrates its own)." >&2; exit 1; }
	$(BIN)/python -m services.billing.migrations
	$(BIN)/python -m services.chat.migrations

# --- check ---

.PHONY: test
test: $(VENV)/.dev ## Run every test; ARGS="-k name" picks some.
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: test-production
test-production: $(VENV)/.dev ## Run the integration tests on two of each service with mutual TLS between them.
	@TEST_PRODUCTION=1 $(BIN)/python -m pytest tests/integration $(ARGS)

.PHONY: test-clients
test-clients: $(VENV)/.dev ## Try clients of others: a JDK's HttpClient, openapi-fetch. Needs javac and npm. RECORD=1 keeps what they send.
	@RECORD="$(RECORD)" $(BIN)/python -m pytest tests/clients --ignore tests/clients/test_browser.py $(ARGS)

.PHONY: test-browser
test-browser: $(VENV)/.dev ## Try a page on another origin in Chromium. Needs chromium. RECORD=1 keeps what it sends.
	@RECORD="$(RECORD)" $(BIN)/python -m pytest tests/clients/test_browser.py $(ARGS)

.PHONY: contract
contract: $(VENV)/.dev ## Try what the OpenAPI document promises against the running system: EXAMPLES=60 SEED=7 tries more.
	@CONTRACT_EXAMPLES="$(EXAMPLES)" CONTRACT_SEED="$(SEED)" $(BIN)/python -m pytest tests/contract -s $(ARGS)

STREAMS ?= 1000000
.PHONY: fuzz
fuzz: $(VENV)/.dev ## Read random and damaged provider answers: STREAMS=50000 SEED=7; RECORDINGS=folder adds recorded ones.
	@$(BIN)/python -m tests.fuzz --streams $(STREAMS) --seed $(or $(SEED),1) $(if $(RECORDINGS),--recordings "$(RECORDINGS)") $(ARGS)

.PHONY: check
check: fmt-check lint types arch proto-check proto-breaking grpc-docs-check providers-docs-check openapi-check lock-check manifests ## What CI runs besides the tests.

.PHONY: fmt
fmt: $(VENV)/.dev ## Format the code and sort its imports.
	$(BIN)/ruff check --select I --fix --quiet $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: fmt-check
fmt-check: $(VENV)/.dev ## Check the format without changing it.
	$(BIN)/ruff format --check $(CODE)

.PHONY: lint
lint: $(VENV)/.dev ## Lint the code.
	$(BIN)/ruff check $(CODE)

.PHONY: types
types: $(VENV)/.dev ## Check the types, strictly.
	$(BIN)/mypy $(CODE)

.PHONY: arch
arch: $(VENV)/.dev ## Check who may import whom.
	$(BIN)/lint-imports

# Prometheus reads alerts.yaml as it is; its operator wants the same inside an object.
.PHONY: alerts
alerts: ## Write deploy/monitoring/rules.yaml from alerts.yaml.
	@{ printf '%s\n' '# Made from alerts.yaml by make alerts.' 'apiVersion: monitoring.coreos.com/v1' 'kind: PrometheusRule' \
	  'metadata:' '  name: backendai-chat' 'spec:'; sed -e '/^#/d' -e 's/^/  /' deploy/monitoring/alerts.yaml; \
	} > deploy/monitoring/rules.yaml

.PHONY: manifests
manifests: $(VENV)/.dev ## Render every Kubernetes manifest and check it against the schemas; needs kubectl.
	@$(BIN)/python -m deploy.manifests

.PHONY: chaos-backends
chaos-backends: $(VENV)/.dev ## Five minutes of sends while NATS changes its password and PostgreSQL's idle connections end.
	@BACKENDS_SECONDS="$(or $(SECONDS),300)" $(BIN)/python -m pytest tests/integration/test_backends.py -s --timeout 900 $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev ## Measure turns: rate, latency, CPU by part. ARGS="--mutual-tls --traced", ARGS="--litellm BIN" for a rival.
	@$(BIN)/python -m tests.bench.turns $(ARGS)

.PHONY: bench-stream
bench-stream: $(VENV)/.dev ## Measure streams: the first delta beside the SDK's, then 200 streams for a minute.
	@$(BIN)/python -m tests.bench.streams first
	@$(BIN)/python -m tests.bench.streams load

# --- generated ---

.PHONY: proto
proto: $(VENV)/.dev ## Make the stubs in proto/gen from the .proto files.
	@rm -rf proto/gen/backendai && mkdir -p proto/gen
	@$(call PROTOC,proto/gen)

.PHONY: proto-check
proto-check: $(VENV)/.dev ## Lint the .proto files; making the stubs again must change nothing.
	$(BIN)/buf lint
	@set -e; made=$$(mktemp -d); trap 'rm -rf "$$made"' EXIT; $(call PROTOC,"$$made"); \
	diff -r -x __pycache__ proto/gen "$$made" || { echo "proto/gen does not fit the .proto files: run make proto." >&2; exit 1; }

.PHONY: proto-breaking
proto-breaking: $(VENV)/.dev ## Fail when the .proto files break clients compiled from main's; BASE=v0.1.0 compares with that.
	@.ci/proto-breaking $(BASE)

.PHONY: grpc-docs
grpc-docs: $(VENV)/.dev ## Write docs/grpc.md from the .proto files and the chapters in docs/grpc.template.md.
	@$(BIN)/python -m docs.grpc_document > docs/grpc.md

.PHONY: grpc-docs-check
grpc-docs-check: $(VENV)/.dev ## Writing docs/grpc.md again must change nothing.
	@$(BIN)/python -m docs.grpc_document | diff -q docs/grpc.md - > /dev/null || { \
	  echo "docs/grpc.md does not fit the .proto files and its chapters: run make grpc-docs." >&2; exit 1; }

.PHONY: providers-docs
providers-docs: $(VENV)/.dev ## Write docs/providers.md from the tables of the code and docs/providers.template.md.
	@$(BIN)/python -m docs.providers_document > docs/providers.md

.PHONY: providers-docs-check
providers-docs-check: $(VENV)/.dev ## Writing docs/providers.md again must change nothing.
	@$(BIN)/python -m docs.providers_document | diff -q docs/providers.md - > /dev/null || { \
	  echo "docs/providers.md does not fit the code: run make providers-docs." >&2; exit 1; }

.PHONY: openapi
openapi: $(VENV)/.dev ## Write docs/openapi.json from the gateway's routes.
	@$(BIN)/python -m gateway.document > docs/openapi.json

.PHONY: openapi-check
openapi-check: $(VENV)/.dev ## Writing docs/openapi.json again must change nothing.
	@$(BIN)/python -m gateway.document | diff -q docs/openapi.json - > /dev/null || { \
	  echo "docs/openapi.json does not fit the gateway's routes: run make openapi." >&2; exit 1; }

# dev holds every other group, so it is resolved first and the others take its versions.
.PHONY: lock
lock: $(UV) ## Pin the dependencies of every group, with hashes; UPGRADE=1 takes the newest.
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --group dev -o requirements/dev.txt
	@set -e; for group in $(filter-out dev,$(GROUPS)); do \
	  $(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --constraints requirements/dev.txt --group $$group -o requirements/$$group.txt; \
	done

.PHONY: lock-check
lock-check: $(UV) ## Locking again must change nothing, and no index is named.
	@set -e; kept=$$(mktemp -d); trap 'rm -rf "$$kept"' EXIT; cp requirements/*.txt "$$kept"; \
	for group in $(GROUPS); do \
	  $(UV) $(LOCK) $$(test $$group = dev || echo --constraints requirements/dev.txt) --group $$group -o "$$kept/$$group.txt"; \
	done; \
	diff -rq requirements "$$kept" || { echo "requirements/ does not fit pyproject.toml: run make lock." >&2; exit 1; }; \
	! grep -n '://' requirements/*.txt || { echo "requirements/ must not name an index." >&2; exit 1; }

# --- images ---

IMAGES := gateway chat billing agent speech translate local-ai
REGISTRY ?= backendai
VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
PYTHON_IMAGE ?= python:3.11-slim
DOCKER ?= docker
# More for docker build, such as --build-arg PIP_INDEX_URL=... or --network host.
BUILD_FLAGS ?=

.PHONY: images
images: ## Build the images, as REGISTRY/<service>:VERSION; PYTHON_IMAGE is their base, BUILD_FLAGS go to docker build.
	@set -e; revision=$$(git describe --always --dirty --abbrev=40 --exclude '*' 2> /dev/null || echo unknown); \
	for image in $(IMAGES); do \
	  echo "Building $(REGISTRY)/$$image:$(VERSION) ..."; \
	  $(DOCKER) build --quiet $(BUILD_FLAGS) --build-arg "PYTHON_IMAGE=$(PYTHON_IMAGE)" --file deploy/docker/Dockerfile --target $$image \
	    --label "org.opencontainers.image.version=$(VERSION)" --label "org.opencontainers.image.revision=$$revision" \
	    --tag "$(REGISTRY)/$$image:$(VERSION)" .; \
	done

.PHONY: images-check
images-check: ## Try what make images has built: each image, then all of them by compose. Needs curl.
	@REGISTRY="$(REGISTRY)" VERSION="$(VERSION)" deploy/docker/try.sh

# --- installed ---

$(BIN)/python:
	@command -v "$(PYTHON)" > /dev/null || { echo "Python 3.11 or newer is needed, and there is no $(PYTHON): install one." >&2; exit 1; }
	@$(PYTHON) deploy/local/preflight.py
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(UV): requirements/uv.txt | $(BIN)/python
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

# The stamp tells which requirements are installed: a second start installs nothing.
$(VENV)/.local $(VENV)/.dev: $(VENV)/.%: requirements/%.txt $(UV)
	@echo "Installing what requirements/$*.txt pins into $(VENV) ..."
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(UV) pip install --quiet --require-hashes -r requirements/$*.txt || { \
	  echo "The installation failed, see above: it needs a package index it can reach, about 1 GB of disk and, for a package" >&2; \
	  echo "without a wheel for this machine, a C compiler with Python's headers (Debian: apt install gcc python3-dev)." >&2; exit 1; }
	@printf '%s\n' "$(CURDIR)" "$(CURDIR)/proto/gen" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/backendai.pth"
	@touch $@

.PHONY: clean
clean: ## Remove what was installed and cached here; the data in .data stays.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
