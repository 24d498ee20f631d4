# make venv | run | test | bench: nothing is needed but Python 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread for each BLAS and OpenMP pool: two pools on one machine cost a factor of 100.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export NUMEXPR_NUM_THREADS ?= 1

.PHONY: venv run test lint bench weights peers soak clean

venv: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,readers]'
	touch $@

run: venv
	$(BIN)/probeloop run

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# On all cores at once; but those that watch processes and their time have the machine to themselves.
test: lint
	$(BIN)/pytest --ignore=tests/process --numprocesses=auto --dist=loadfile --cov --cov-report=
	$(BIN)/pytest tests/process --cov --cov-append --cov-report=term

bench: venv
	$(BIN)/probeloop bench

# All that is shipped, made again from the simulators; an hour on two cores. FINDER= leaves the finder out.
PRESETS := graphene-si perovskite mos2 pfm-walls pfm-pathways diffraction afm-rods
FINDER ?= $(BIN)/probeloop train finder --seed 10 --images 36000 --output models/weights/finder.safetensors
weights: venv
	for preset in $(PRESETS); do \
		$(BIN)/probeloop train rvae --preset $$preset --no-report \
			--output models/weights/$$(echo $$preset | tr - _)_rvae.safetensors || exit 1; \
	done
	$(FINDER)

# AtomAI and pyroVED, in an environment of their own, for the benchmarks that compare with them. Without
# their dependencies: AtomAI asks for a torchvision that fits one build of torch only, and does without.
PEERS := tests/benchmarks/peers/constraints.txt
peers: .peers/ready

.peers/ready: $(PEERS)
	$(PYTHON) -m venv .peers
	.peers/bin/pip install --quiet --disable-pip-version-check --constraint $(PEERS) \
		torch numpy scipy scikit-learn scikit-image gpytorch pandas matplotlib networkx \
		opencv-python-headless progressbar2 pyro-ppl
	.peers/bin/pip install --quiet --disable-pip-version-check --constraint $(PEERS) --no-deps atomai pyroved
	touch $@

# 20 minutes at half the rate that can be had, with a kill every minute; PROBELOOP_SOAK_S=300 takes five.
soak: venv
	$(BIN)/python -m tests.process.faults.soak

clean:
	rm -rf $(VENV) .peers build *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
