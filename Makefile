# Every target sets up first what it needs; .ci/setup leaves alone what is there and current.
.PHONY: setup demo test test-gvisor lint bench bench-peers soak clean

setup:
	@.ci/setup

demo: setup
	@.venv/bin/python -m tests.demo

test: setup lint
	.venv/bin/python -m pytest -q

# The tests with real boxes, in boxes under gVisor.
test-gvisor: setup
	@.ci/gvisor
	RLM_SANDBOX_TEST_POLICY=gvisor .venv/bin/python -m pytest -q -m docker

lint:
	@.ci/setup environment
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: setup
	@.venv/bin/python -m tests.bench

# Installs other systems of the kind into the cache folder, each in an environment of its own, and runs them beside ours.
bench-peers: setup
	@.venv/bin/python -m tests.bench peers

# Hundreds of boxes with random hazards, and nothing left of any: `make soak SOAK="--boxes 100 --seed 1234"`.
soak: setup
	@.venv/bin/python -m tests.soak $(SOAK)

clean:
	rm -rf .venv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
