# The developer's verbs. ./test makes the environment that they use.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: check check-gpu bench format
check:            ## what CI runs
	./test
check-gpu:        ## kernels and the TensorRT stage, on a machine with an NVIDIA GPU
	pytest -m gpu tests/gpu
bench:            ## every figure that the project quotes, into tests/perf/results/<machine>/
	python -m tests.perf
format:
	ruff format .
	ruff check --fix .
