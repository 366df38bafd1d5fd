# Every command here installs what it needs into .venv first.
PYTHON ?= python3
ROOM ?= splitter/passes
SEED ?= 1
COUNT ?= 20
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
BUNDLE ?= demo.bundle
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help demo test slow browser real swift-test swift-sanitize swift-faults mutants fuzz fuzz-corpus lint types audit check \
	format constraints schema aten-ops mil-ops doctor-rules doctor-cases docs bench clean

help: ## Show this help.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.venv/.installed: pyproject.toml constraints.txt constraints-dev.txt constraints-cuda.txt constraints-apart.txt
	$(PYTHON) -m venv .venv
	@# A pinned build of PyTorch in pip's find-links goes before the index's, which may need gigabytes of CUDA.
	@sed -n '/^torch==/,/[^\\]$$/p' constraints.txt | $(PIP) --no-index --require-hashes --no-deps -r /dev/stdin 2>/dev/null || true
	$(PIP) --require-hashes --no-deps -r constraints.txt -r constraints-dev.txt -r constraints-apart.txt
	@grep -q '^Requires-Dist: nvidia' .venv/lib/python*/site-packages/torch-*.dist-info/METADATA || exit 0; \
		$(PIP) --require-hashes --no-deps -r constraints-cuda.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: .venv/.installed ## Build the embedded demo model, verify the bundle, separate a synthesised song.
	$(BIN)/splitter build demo -o $(BUNDLE) --force
	$(BIN)/splitter verify $(BUNDLE)
	$(BIN)/python -m splitter_weights.demo.songs --out demo-song.wav
	$(BIN)/splitter separate demo-song.wav -b $(BUNDLE)

browser: ## Install Chromium and its driver, for the tests of the report; on Debian, and where they are missing.
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		$(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; \
	} || echo "No chromium and chromedriver: the tests that open a report in a browser are skipped. Install both."

test: .venv/.installed browser ## Run the tests that need neither the released model nor many minutes.
	$(BIN)/python -m pytest -m "not real and not slow and not swift" -n auto --dist loadfile

slow: .venv/.installed ## Run the tests that take long: whole-size models, whole command lines, a cluster.
	$(BIN)/python -m pytest -m "slow and not real and not swift" -n auto --dist loadfile

real: .venv/.installed ## Run the tests on the released model and recorded music ($$SPLITTER_DATA or ../shared/data).
	$(BIN)/python -m pytest -m real

SWIFT := swift/toolchain.sh swift
SWIFT_FLAGS := --package-path swift -c release -Xswiftc -warnings-as-errors -Xswiftc -enable-testing

swift-test: .venv/.installed ## Build the host for Apple devices and run it on stand-ins; fetches Swift on Debian.
	$(SWIFT) format lint --strict --recursive swift/Package.swift swift/Sources swift/Standins swift/Tests
	$(SWIFT) build $(SWIFT_FLAGS) --build-tests
	$(BIN)/python -m tests.swift.bundles swift/.build
	$(SWIFT) test $(SWIFT_FLAGS) --skip-build --disable-swift-testing
	$(BIN)/python -m pytest -m "swift and not slow" tests/swift

# What takes long under a sanitizer, or measures memory, is left to `make swift-test`.
SANITIZED := --filter OrchestratorTests --filter SeparationTests --skip testMemoryDoesNotGrowWithTheSong

swift-sanitize: ## Run the host under the thread and the address sanitizer, after `make swift-test`.
	$(SWIFT) test $(SWIFT_FLAGS) --disable-swift-testing --scratch-path swift/.build/thread --sanitize thread $(SANITIZED)
	@# Leaks are not looked for: 37 kB at the end of the process, in libraries without symbols.
	ASAN_OPTIONS=detect_leaks=0 $(SWIFT) test $(SWIFT_FLAGS) --disable-swift-testing --scratch-path swift/.build/address --sanitize address \
		$(SANITIZED) --filter DamagedBundleTests --filter Tensor --filter Transform

swift-faults: .venv/.installed ## Put faults into a copy of the host's sources, after `make swift-test`: each must be named.
	$(BIN)/python -m pytest -m "swift and slow" tests/swift

mutants: .venv/.installed ## Change COUNT places of ROOM, drawn by SEED, one at a time: its tests must notice 95 % of them.
	$(BIN)/python -m tests.mutants $(ROOM) --seed $(SEED) --count $(COUNT)

fuzz: .venv/.installed ## Read 20,000 changed files of every format, within limits (SEED=N for others).
	$(BIN)/python -m tests.fuzz --inputs 20000 --seed $(SEED)

fuzz-corpus: .venv/.installed ## Write the sound files that `make fuzz` changes, after a format has changed.
	$(BIN)/python -m tests.fuzz.seeds

lint: .venv/.installed ## Check style, format, and which room imports which.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.installed ## Check types, strictly.
	$(BIN)/mypy

audit: .venv/.installed ## Hold all dependencies against the list of known vulnerabilities (.ci/advisories.toml).
	$(BIN)/python .ci/audit.py

check: lint types audit test slow ## All of the above but the real tests.

format: .venv/.installed ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: ## Write constraints*.txt, the hashes of every version, from pyproject.toml; takes uv.
	$(PYTHON) .ci/constraints.py

schema: .venv/.installed ## Write the JSON Schemas under docs/ from the code.
	$(BIN)/python -m splitter.bundle.manifest > docs/manifest.schema.json
	$(BIN)/python -m splitter_weights.transformer > docs/transformer.schema.json
	$(BIN)/python -m splitter.profiling > docs/profile.schema.json

aten-ops: .venv/.installed ## Write docs/aten-ops.md from the code.
	$(BIN)/python -m splitter.aten.ops > docs/aten-ops.md

mil-ops: .venv/.installed ## Write docs/mil-ops.md from the code.
	$(BIN)/python -m splitter.mil.ops > docs/mil-ops.md

doctor-rules: .venv/.installed ## Write docs/doctor-rules.md from the code.
	$(BIN)/python -m splitter.diagnosis > docs/doctor-rules.md

doctor-cases: .venv/.installed ## Write docs/doctor-cases.md from published failures, built and run.
	$(BIN)/python -m tests.diagnosis.published > docs/doctor-cases.md

docs: .venv/.installed ## Build the handbook as a site under site/, with a report of the demo model to open.
	$(PIP) --require-hashes --no-deps -r constraints-docs.txt
	$(BIN)/splitter build demo -o $(BUNDLE) --force
	$(BIN)/splitter report $(BUNDLE) -o docs/sample-report.html --runs 1 --force
	$(BIN)/zensical build --strict

bench: .venv/.installed ## Measure against demucs (see benchmarks/README.md).
	$(BIN)/python -m benchmarks

clean: ## Remove what the commands above made.
	rm -rf .venv demo.bundle demo-song.wav separated dist site docs/sample-report.html
