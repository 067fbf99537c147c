"""The same loop on Postgres and S3: equal results for equal seeds, and a database that dies.

Both loops are turned by the command, with the real daemon; the database is killed in the middle of
the second one as a power cut would.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import OperationalError

from health_predict.ledger import Ledger
from health_predict.loop import _patiently
from health_predict.processes import ProcessError, dagster_home
from health_predict.settings import ROOT, Settings
from health_predict.store import open_store
from health_predict.tracking import Registry
from health_predict_tests.postgres import Postgres

pytestmark = pytest.mark.loop

COMMAND = (str(Path(sys.executable).with_name("health-predict")), "loop")
# Small, and in one process: what is asked here is where state is kept.
SMALL = {
    "HEALTH_PREDICT_TRIALS": "3",
    "HEALTH_PREDICT_FAMILIES": "logistic_regression,xgboost",
    "HEALTH_PREDICT_SEARCH_BACKEND": "serial",
}
OPTIONS = ("--rows", "8000", "--batches", "2", "--timeout", "1200")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres.make(tmp_path_factory.mktemp("postgres"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def host(
    database: Postgres, s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, str]]:
    """The environment of a host: Postgres for Dagster and MLflow, S3 for the rest."""
    given = {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "HEALTH_PREDICT_DEPLOYMENT": "host",
        "HEALTH_PREDICT_VAR": str(tmp_path_factory.mktemp("host") / "var"),
        "HEALTH_PREDICT_STORE": "s3://hospital/state",
        "HEALTH_PREDICT_POSTGRES": database.create("dagster"),
        "HEALTH_PREDICT_MLFLOW_TRACKING_URI": database.create("mlflow"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        from health_predict.store import s3_client

        s3_client().create_bucket(Bucket="hospital")
        yield given


def turn(given: Mapping[str, str]) -> dict[str, Any]:
    """Runs the command to its end; returns the facts that it wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = {"HEALTH_PREDICT_PORT": str(probe.getsockname()[1])}
    cleared = {k: v for k, v in os.environ.items() if not k.startswith("HEALTH_PREDICT_")}
    done = subprocess.run(
        [*COMMAND, *OPTIONS],
        cwd=ROOT,
        env={**cleared, **SMALL, **port, **given},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    var = Path(given["HEALTH_PREDICT_VAR"])
    logs = "".join(path.read_text(errors="replace")[-4000:] for path in var.glob("logs/*.log"))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:] + logs
    facts: dict[str, Any] = json.loads((var / "loop.json").read_text())
    return facts


class Outage(threading.Thread):
    """Kills the database once a batch was ingested, and starts it again five seconds later."""

    def __init__(self, database: Postgres, url: str) -> None:
        super().__init__(daemon=True)
        self.database, self.url, self.killed = database, url, False

    def run(self) -> None:
        deadline = time.monotonic() + 1_200
        while not self._begun() and time.monotonic() < deadline:
            time.sleep(0.5)
        self.database.kill()
        self.killed = True
        time.sleep(5)
        self.database.start()

    def _begun(self) -> bool:
        """Whether a step of an ingestion is under way."""
        asked = (
            "SELECT count(*) FROM event_logs JOIN runs USING (run_id) "
            "WHERE pipeline_name = 'ingest_batch' AND dagster_event_type = 'STEP_START'"
        )
        try:
            connection = psycopg2.connect(self.url, connect_timeout=5)
            with connection, connection.cursor() as cursor:
                cursor.execute(asked)
                (count,) = cursor.fetchone()
            connection.close()
        except psycopg2.Error:  # its tables are not there yet
            return False
        return bool(count)


def told(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what must not depend on where state is kept."""
    champion = facts["promotions"][-1]
    return {
        "batches": [
            {name: batch[name] for name in ("batch", "drift", "auc", "expected_observed")}
            for batch in facts["batches"]
        ],
        "first": {name: facts["promotions"][0][name] for name in ("family", "window", "reason")},
        "champion": {name: champion[name] for name in ("family", "window", "reason")},
        "score": facts["predict_response"]["probability_score"],
        "data": facts["data"],
    }


@pytest.fixture(scope="module")
def outage(database: Postgres, host: Mapping[str, str]) -> Outage:
    return Outage(database, host["HEALTH_PREDICT_POSTGRES"])


@pytest.fixture(scope="module")
def there(host: Mapping[str, str], outage: Outage) -> dict[str, Any]:
    """What a loop did on Postgres and S3, its database killed in the middle."""
    outage.start()
    facts = turn(host)
    outage.join(timeout=60)
    return facts


def test_the_loop_gives_the_same_on_postgres_and_s3_as_under_var(
    there: dict[str, Any], outage: Outage, tmp_path: Path
) -> None:
    assert outage.killed
    here = turn({"HEALTH_PREDICT_VAR": str(tmp_path / "var")})
    assert told(there) == told(here)


def test_everything_that_has_to_last_is_in_the_bucket_and_nothing_of_it_under_var(
    there: dict[str, Any], host: Mapping[str, str]
) -> None:
    keys = open_store(host["HEALTH_PREDICT_STORE"]).keys()
    wanted = ("initial.parquet", "ledger.jsonl", "future_batch/batch-0002.parquet")
    assert {*wanted, "drift_reports/batch-0001/report.html"} <= set(keys)
    assert any(key.startswith("releases/release-") for key in keys)
    assert any(key.startswith("mlflow-artifacts/") for key in keys)
    var = Path(host["HEALTH_PREDICT_VAR"])
    assert not (var / "store").exists()
    # What the service counts, and nothing else, is in files that are named like a database.
    databases = {
        path for path in var.rglob("*.db") if path.parent.name != "prometheus_multiproc_dir"
    }
    assert databases == set()


def test_the_ledger_there_is_whole_and_anchored(
    there: dict[str, Any], host: Mapping[str, str]
) -> None:
    ledger = Ledger(open_store(host["HEALTH_PREDICT_STORE"]))
    registry = Registry(host["HEALTH_PREDICT_MLFLOW_TRACKING_URI"], Settings().artifacts)
    assert ledger.verify(registry.ledger_head()) > 3
    moves = [entry.after for entry in ledger.entries() if entry.kind == "alias_move"]
    champion = registry.champion()
    assert champion and moves[-1] == champion.version == there["champion_version"]


def test_a_second_loop_does_not_begin_on_the_state_of_the_first(
    there: dict[str, Any], host: Mapping[str, str]
) -> None:
    done = subprocess.run(
        [*COMMAND, *OPTIONS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "the store s3://hospital/state holds" in done.stderr
    assert "HEALTH_PREDICT_STORE" in done.stderr


def test_a_host_without_its_database_says_which_setting_names_it(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="set HEALTH_PREDICT_POSTGRES"):
        dagster_home(Settings(var=tmp_path, deployment="host", postgres=None))


def test_a_database_that_dagster_gave_up_on_is_awaited() -> None:
    gone = OperationalError("SELECT 1", None, Exception("connection refused"))
    answers = iter([gone, gone, None])

    def look() -> str:
        if error := next(answers):
            raise DagsterPostgresException("too many retries for DB connection") from error
        return "there again"

    assert _patiently(look) == "there again"


def test_what_is_no_outage_is_not_awaited() -> None:
    def look() -> str:
        raise ValueError("a fault of the code")

    with pytest.raises(ValueError, match="a fault of the code"):
        _patiently(look)
