# The two commands are `make demo` and `make test`; both need Python 3.11 or 3.12, make and a
# package index, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

USED := alembic.command bentoml.bentos bentoml_cli.cli _bentoml_impl.server.serving \
  _bentoml_impl.server.app _bentoml_impl.worker.service dagster._cli.api dagster._daemon.cli \
  dagster._grpc.server dagster_mlflow dagster_webserver.cli evidently.presets health_predict.cli \
  health_predict.definitions health_predict.loop health_predict.page health_predict.terminal \
  health_predict.tracking jinja2 mlflow.sklearn mlflow.store.model_registry.sqlalchemy_store \
  mlflow.store.tracking.sqlalchemy_store matplotlib.backends.backend_agg optuna pandera.pandas psutil pyarrow.dataset pyarrow.parquet \
  ray.tune.schedulers ray.tune.logger ray._private.node sklearn.calibration sklearn.ensemble \
  sklearn.frozen sklearn.linear_model skops.io tenacity uvicorn xgboost
# Ray's own processes find their parts by looking into these.
USED_WHOLE := cryptography google kubernetes oauthlib ray/_private ray/autoscaler ray/core ray/dag \
  ray/dashboard ray/experimental
define COMPILE_WHAT_IS_USED
import compileall, importlib, py_compile, sys, sysconfig
for folder in "$(USED_WHOLE)".split():
    compileall.compile_dir(sysconfig.get_path("purelib") + "/" + folder, quiet=2)
for name in "$(USED)".split():
    importlib.import_module(name)
for module in list(sys.modules.values()):
    path = str(getattr(module, "__file__", None))
    if path.startswith(sys.prefix) and path.endswith(".py"):
        py_compile.compile(path, quiet=1)
endef
export COMPILE_WHAT_IS_USED

DATA ?= synthetic
BATCHES ?=
ROWS ?= 30000
TESTS ?=
OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo dev serve doctor test lint validate check-graph lint-k8s lint-iac eda \
  bench bench-loop bench-hpo bench-gate bench-drift bench-ticks bench-serving bench-scaling results \
  ablation policies samples screenshots docs minikube-up minikube-down lock clean

help:  ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The lock holds every package that is needed, so nothing is left to resolve. Byte code is made of
# what is imported: all of it would take 320 MB more; with none, each run compiles its imports anew
# where Python may not write them (PYTHONDONTWRITEBYTECODE, a read-only installation).
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "health_predict needs Python 3.11 or 3.12; '$(PYTHON)' is $$($(PYTHON) -V). \
	  Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps \
	  --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -W ignore -c "$$COMPILE_WHAT_IS_USED"
	@touch $@

install: $(READY)  ## Make .venv from the lock file.

demo: $(READY)  ## Turn the whole loop once: DATA=synthetic|uci|path|s3://... BATCHES=... ROWS=...
	$(BIN)/health-predict loop --data "$(DATA)" $(if $(BATCHES),--batches $(BATCHES)) --rows $(ROWS)

dev: $(READY)  ## Dagit, daemon, MLflow UI and service on the same state.
	$(BIN)/health-predict dev

serve: $(READY)  ## The champion behind POST /predict, in the foreground.
	$(BIN)/health-predict serve

doctor: $(READY)  ## Every part, its state, and the remedy of what is wrong.
	$(BIN)/health-predict doctor

test: $(READY)  ## All tests; TESTS="-k drift" for some.
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(TESTS)

lint: $(READY)  ## Style, types, definitions.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/dg check defs

validate: $(READY)  ## Whether the code location loads, as Dagster's own command says.
	$(BIN)/dagster definitions validate -w workspace.yaml

check-graph: $(READY)  ## The graph materialised once, small; asset checks are the gate.
	$(BIN)/python -W ignore -m health_predict.graph_check --data "$(DATA)"

CHECKOV := var/tools/checkov/bin/checkov
$(CHECKOV):
	$(PYTHON) -m venv var/tools/checkov
	var/tools/checkov/bin/pip install --quiet --disable-pip-version-check checkov==3.3.30

lint-k8s: $(READY) $(CHECKOV)  ## Manifests against schemas and checkov, scripts against shellcheck.
	CHECKOV=$(CHECKOV) $(BIN)/python -m pytest -q -rs health_predict_tests/test_manifests.py \
	  health_predict_tests/test_minikube_scripts.py

lint-iac: $(READY) $(CHECKOV)  ## Terraform and the host's scripts: schemas, checkov, shellcheck.
	CHECKOV=$(CHECKOV) $(BIN)/python -m pytest -q -rs health_predict_tests/test_terraform.py \
	  health_predict_tests/test_teardown.py health_predict_tests/test_first_boot.py \
	  health_predict_tests/test_host_compose.py health_predict_tests/test_host_scripts.py

eda: $(READY)  ## What the data are, and a baseline: var/eda/01_eda_baseline.html
	$(BIN)/python -m notebooks.render --data "$(DATA)" --rows $(ROWS)

minikube-up:  ## Minikube as a release wants to find it.
	k8s/minikube-up

minikube-down:  ## Stops it.
	k8s/minikube-down

bench: $(READY)  ## What ends within a quarter of an hour, one after the other: var/bench/README.md
	$(BIN)/python -W ignore -m benchmarks.suite

bench-loop: $(READY)  ## Where the seconds go from drift to the new version serving.
	$(BIN)/python -m benchmarks.loop

bench-scaling: $(READY)  ## Seconds and memory of each step at x1, x10, x100 rows.
	$(BIN)/python -W ignore -m benchmarks.scaling $(OPTIONS)

bench-hpo: $(READY)  ## What a search costs, against one process and the usual way: var/bench/hpo.json
	$(BIN)/python -W ignore -m benchmarks.hpo --data "$(DATA)"

bench-gate: $(READY)  ## How often the gate is right about known challengers: var/bench/gate.json
	$(BIN)/python -W ignore -m benchmarks.gate --data "$(DATA)"

bench-drift: $(READY)  ## How often the drift decision is wrong and right: var/bench/drift.json
	$(BIN)/python -W ignore -m benchmarks.drift --data "$(DATA)"

bench-ticks: $(READY)  ## Ticks of the sensors with 10,000 batches behind them: var/bench/ticks.json
	$(BIN)/python -W ignore -m benchmarks.ticks 2> /dev/null

bench-serving: $(READY)  ## /predict against the bare stack and the usual ways: var/bench/serving.json
	$(BIN)/python -W ignore -m benchmarks.serving --data "$(DATA)"

results: $(READY)  ## Never against always retrained; OPTIONS=--write-docs fills in docs/results.md
	$(BIN)/python -W ignore -m benchmarks.results --data "$(DATA)" $(OPTIONS)

policies: $(READY)  ## Trained when the loop decides, against every batch: var/bench/policies.json
	$(BIN)/python -W ignore -m benchmarks.policies --data "$(DATA)"

ablation: $(READY)  ## What each feature is worth on later parts: var/bench/ablation.json
	$(BIN)/python -W ignore -m benchmarks.ablation --data "$(DATA)"

SAMPLES := batch-0001 batch-0005
samples: $(READY)  ## Two of Evidently's reports into docs/samples/, of the state that a loop left.
	mkdir -p docs/samples
	$(foreach batch,$(SAMPLES),cp var/store/drift_reports/$(batch)/report.html docs/samples/$(batch).html;)

screenshots: $(READY)  ## The pictures of the docs, of the state that `make demo` left.
	$(BIN)/python -W ignore docs/screenshots.py

docs: $(READY)  ## What is generated in docs/: settings, and the card of the champion.
	$(BIN)/health-predict settings --markdown > docs/settings.md
	$(BIN)/health-predict card > docs/model-card.md

# Needs uv, which only whoever changes the dependencies has to have.
lock:  ## Make both lock files anew from pyproject.toml.
	uv pip compile pyproject.toml --extra platform --group dev --universal --python-version 3.11 \
	  --fork-strategy fewest --no-emit-index-url --no-annotate --no-header --generate-hashes \
	  --quiet --output-file requirements.lock
	uv pip compile pyproject.toml --universal --python-version 3.11 --fork-strategy fewest \
	  --no-emit-index-url --no-annotate --no-header --generate-hashes --quiet \
	  --constraint requirements.lock --output-file requirements-serving.lock

clean:  ## Remove everything that was made: state, environment, caches.
	rm -rf var $(VENV) .pytest_cache .mypy_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
