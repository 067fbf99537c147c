"""Fixtures shared by the tests: a small cohort, a fitted pipeline a family, a request, the archive.

They are made once a session and are not to be changed: tests that change a frame copy it first.
"""

from health_predict.settings import silence_telemetry

silence_telemetry()

import json  # noqa: E402  telemetry is off before anything that has some is imported
import os  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
from sklearn.pipeline import Pipeline  # noqa: E402

from health_predict import compiling, encounters, features, models, schema, splits  # noqa: E402
from health_predict.store import Store, open_store, s3_client  # noqa: E402

SMALL: dict[str, models.Params] = {
    "logistic_regression": {"C": 0.05},
    "random_forest": {
        "trees": 16,
        "min_samples_leaf": 10,
        "max_features": 0.2,
        "max_depth": 8,
    },
    "xgboost": {
        "rounds": 40,
        "learning_rate": 0.1,
        "max_depth": 3,
        "min_child_weight": 4.0,
        "subsample": 0.8,
        "colsample_bytree": 0.5,
        "reg_lambda": 1.0,
    },
}
"""Hyperparameters that fit within a second."""

FACTS = {
    "name": "readmission",
    "version": "3",
    "run_id": "0f3a",
    "data": "synthetic cohort",
    "fingerprint": "54b2",
    "git_revision": "abc123",
    "threshold": 0.5,
    "risk_bands": {"low": 0.0, "medium": 0.3, "high": 0.6},
}
"""What the service tells of a model."""


def archive_path() -> Path:
    """Returns the published archive, or skips the test that asks for it."""
    default = Path(__file__).parents[2] / "shared" / "data" / "diabetes_130_us_hospitals.zip"
    path = Path(os.environ.get("HEALTH_PREDICT_TEST_DATA", default))
    if not path.is_file():
        pytest.skip(f"the published archive is not at {path}; set HEALTH_PREDICT_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def archive() -> Path:
    return archive_path()


@pytest.fixture(scope="session")
def raw() -> pd.DataFrame:
    """6,000 synthetic rows as published: columns of strings."""
    return encounters.read("synthetic", rows=6_000, seed=5)[0]


@pytest.fixture(scope="session")
def cohort(raw: pd.DataFrame) -> pd.DataFrame:
    """The cohort of `raw`, label `any`."""
    return encounters.cohort(encounters.apply_contract(raw)[0], "any")


@pytest.fixture(scope="session")
def pipelines(cohort: pd.DataFrame) -> dict[str, Pipeline]:
    """One fitted pipeline a family, learned on the first 40 % of the cohort."""
    known = splits.with_side(cohort.iloc[: int(len(cohort) * 0.4)])
    train, held_out = known[known[schema.SIDE] == "train"], known[known[schema.SIDE] != "train"]
    preprocessor = features.preprocessor().fit(train)
    x, unseen = (preprocessor.transform(f).astype(np.float32) for f in (train, held_out))
    return {
        family: models.pipeline(
            preprocessor,
            models.fit(
                models.Candidate(family, params),
                models.Sample(x, train[schema.LABEL].to_numpy()),
                0,
            ),
            unseen,
            held_out[schema.LABEL].to_numpy(),
        )
        for family, params in SMALL.items()
    }


@pytest.fixture(scope="session")
def compiled(
    pipelines: dict[str, Pipeline], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Each family's pipeline compiled for serving; copy a folder before changing it."""
    folders = {family: tmp_path_factory.mktemp(family) for family in pipelines}
    for family, folder in folders.items():
        compiling.compile_pipeline(pipelines[family], FACTS, folder)
    return folders


@pytest.fixture
def encounter(cohort: pd.DataFrame) -> dict[str, Any]:
    """One valid request by published names; each test gets its own."""
    row: dict[str, Any] = json.loads(cohort[list(schema.INPUTS)].iloc[0].to_json())
    return row


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    from moto.moto_server import threaded_moto_server

    server = threaded_moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an empty bucket there, which AWS's own chain finds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"encounters-{uuid.uuid4().hex[:12]}"
    s3_client().create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "folder":
        return open_store(tmp_path / "store")
    return open_store(f"s3://{request.getfixturevalue('bucket')}/kept/here")
