# Each target makes its own virtual environment with pinned versions; nothing has to be set up before.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
NATIVE := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*/*.cpp csrc/*/*/*.h)

.PHONY: setup demo test check format bench wheel clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml setup.py constraints.txt CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT= $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	cmake -S . -B build/tests -GNinja -DDIFFQ_FAST_PYTHON=OFF -DDIFFQ_FAST_TESTS=ON -DDIFFQ_FAST_C=ON > /dev/null
	cmake --build build/tests
	ctest --test-dir build/tests --output-on-failure
	$(BIN)/python -m pytest -n 2 --durations 25 --durations-min 5

check: setup
	ruff check .
	ruff format --check .
	clang-format --dry-run --Werror $(NATIVE) $(wildcard benchmarks/*.cpp examples/cpp/*.cpp)
	typos
	mypy

format: setup
	ruff check --fix .
	ruff format .
	clang-format -i $(NATIVE) $(wildcard benchmarks/*.cpp examples/cpp/*.cpp)

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only

wheel: setup
	rm -rf build/wheel build/lib* build/bdist* build/temp*
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	auditwheel repair --plat auto --wheel-dir dist build/wheel/diffq_fast-*-linux_*.whl
	DIFFQ_FAST_SKIP_NATIVE=1 $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	ls -l dist

clean:
	rm -rf build dist wheelhouse *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis diffq_fast/_core*.so
	rm -rf $(VENV)
