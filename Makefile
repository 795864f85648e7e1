# Shortcuts for developers. ./test creates the environment that they use.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := build/tensorrt-rtx-1.6

.PHONY: help unit check check-gpu check-jetsons check-locks camera-zoo bench format lock sbom audit
help:             ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14
unit:             ## tests that start no process and build no engine: under a minute
	pytest -q -n auto -m unit tests/unit
check:            ## all checks, and the tests of all tiers except matrix, zoo, and packages
	./test
check-gpu:        ## kernels and the TensorRT stage, on a machine with an NVIDIA GPU
	pytest -m gpu tests/gpu
check-jetsons:    ## the tests with the TensorRT, Python, and packages of each JetPack, and every TensorRT-RTX
	tools/check_jetsons
check-locks:      ## download the packages of the lock files, compare their hashes, and run the audit
	pytest -q -n 2 -m packages tests/unit/test_locks.py
camera-zoo:       ## every camera of the zoo under every fault: 4 minutes
	pytest -q -n 2 -m zoo tests/zoo
bench:            ## measure the figures that the project publishes, into tests/perf/results/
	python -m tests.perf
format:           ## format the code and fix what can be fixed automatically
	ruff format .
	ruff check --fix .
lock:             ## write the lock files of the service again, with the newest packages
	python tools/lock.py
sbom: $(patsubst locks/%.txt,build/sbom/%.json,$(wildcard locks/*.txt)) ## list the locked packages in the format CycloneDX
build/sbom/%.json: locks/%.txt pyproject.toml | build/cyclonedx/bin/cyclonedx-py
	mkdir -p build/sbom
	PYTHONPATH=build/cyclonedx PYTHONWARNINGS=ignore python -m cyclonedx_py requirements --pyproject pyproject.toml \
	  --mc-type application --output-reproducible $(SBOM_OPTIONS) -o $@ $<
# In a folder of its own: in the environment of the tests, its packages would make the import of jsonschema take 2 s.
build/cyclonedx/bin/cyclonedx-py:
	python -m pip install -q --disable-pip-version-check --target build/cyclonedx 'cyclonedx-bom>=7'
audit:            ## search the locked packages for known vulnerabilities
	python tools/audit.py
