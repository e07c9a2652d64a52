# `make` lists the targets. Tools that are missing are installed by
# tools/install.sh into a cache outside the tree.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

WITH_TOOLS := PATH="$$(tools/install.sh --path):$$PATH"
TEST_TOOLS := debian brokers grpcurl grpc-health-probe h2spec python verifiers envoy keycloak
SHELL_SCRIPTS := .ci/run $(wildcard tools/*.sh tests/it/*/*.sh)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: ci
ci: lint licences test gen-check ## Everything that must pass: gates, tests, generated files

.PHONY: test
test: ## Install what the tests need and run all of them
	@tools/install.sh $(TEST_TOOLS) & tools=$$!; \
	built=0; cargo test --locked --workspace --no-run || built=$$?; \
	wait $$tools; exit $$built
	$(WITH_TOOLS) cargo test --locked --workspace

.PHONY: fmt
fmt: ## Format the Rust code and the protos
	@tools/install.sh buf
	cargo fmt --all
	$(WITH_TOOLS) buf format --write --exclude-path proto/google

.PHONY: lint
lint: ## Check format, lints of Rust, protos and shell scripts
	cargo fmt --all --check
	@tools/install.sh buf shellcheck
	$(WITH_TOOLS) buf lint
	$(WITH_TOOLS) buf format --diff --exit-code --exclude-path proto/google
	shellcheck --external-sources $(SHELL_SCRIPTS)
	cargo clippy --locked --workspace --all-targets -- -D warnings
	for features in "" amqp redis; do \
		cargo clippy --locked --package bailiwick --no-default-features \
			--features "$$features" -- -D warnings; \
	done

.PHONY: licences
licences: ## Check licences, bans and sources of all dependencies
	@tools/install.sh cargo-deny
	$(WITH_TOOLS) cargo deny --locked --log-level warn check licenses bans sources

.PHONY: gen
gen: ## Write the generated files anew
	@tools/install.sh buf
	$(WITH_TOOLS) tools/gen.sh

# Fails when a generated file in the tree is not what its source says.
.PHONY: gen-check
gen-check:
	@tools/install.sh buf
	$(WITH_TOOLS) tools/gen.sh --check

FUZZ_SECONDS ?= 30
FUZZ_TARGETS ?= jwt api_key token_file line ztick_logfile gateway template

# Without a sanitizer the stable toolchain will do; our code has no unsafe. New
# inputs go to target/fuzz, findings to fuzz/artifacts; `make test` replays
# fuzz/corpus.
.PHONY: fuzz
fuzz: ## Run each of FUZZ_TARGETS for FUZZ_SECONDS
	@tools/install.sh cargo-fuzz
	$(WITH_TOOLS) cargo fuzz build --sanitizer none
	for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/$$target; \
		$(WITH_TOOLS) cargo fuzz run --sanitizer none $$target \
			target/fuzz/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048; \
	done

.PHONY: bench
bench: ## Measure, each figure beside its baseline; writes target/bench.json
	cargo build --locked --release --package bailiwick --package bailiwick-bench
	$${CARGO_TARGET_DIR:-target}/release/bailiwick-bench
