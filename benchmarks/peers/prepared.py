"""The one model that all services of the comparison serve, and the encounters they are asked about.

`python -m benchmarks.peers.prepared FOLDER DATA` runs in a process of its own: BentoML keeps one
store a process, and who measures shall not carry what fitting needs. The model is XGBoost of the
default size, learned from the first fifth as the loop's first champion is; asked are later people.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.prequential import cohort, cut, learn
from health_predict import experiments
from health_predict.bundling import build_bento
from health_predict.schema import INPUTS
from health_predict.settings import Settings, silence_telemetry

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

ASKED = 200
BATCH_ROWS = 10_000
MEDIA_TYPES = {
    "json": "application/json",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}
"""Formats of a batch: name, also the file's ending -> media type."""


@dataclass(frozen=True)
class Prepared:
    """What the services need and are asked.

    Attributes:
        data: caption of the source.
        sha256: digest of the source.
        model_bytes: size of the compiled scorer.
        tag: the Bento's, in the store `bentoml`.
        scorer: folder of the compiled scorer.
        logged: folder of the model as MLflow logged it.
        encounters: what is asked, by published column.
        scores: what the pipeline says to each.
        batch_scores: what it says to each row of the files `batch.*`.
    """

    data: str
    sha256: str
    model_bytes: int
    tag: str
    scorer: str
    logged: str
    encounters: list[dict[str, Any]]
    scores: list[float]
    batch_scores: list[float]


def read(folder: Path) -> Prepared:
    """Returns what was prepared in a folder."""
    return Prepared(**json.loads((folder / "prepared.json").read_text()))


def prepare(folder: Path, data: str) -> Prepared:
    """Fits, compiles and logs the model; writes the batches.

    Args:
        folder: empty; all that is made goes here.
        data: as `encounters.read` takes it.
    """
    seed = Settings().seed
    people, source = cohort(data, "any")
    past = cut(people, 1)[0].past
    fitted = learn(past, seed)
    facts = {
        **{"name": "readmission", "version": "1", "run_id": "benchmark", "data": source.caption},
        **{"threshold": fitted.thresholds.value, "risk_bands": fitted.thresholds.bands},
    }
    home = folder / "bentoml"
    bento = build_bento(fitted.pipeline, facts, "1", home)
    scorer = home / "models" / bento.tag.replace(":", "/")
    rows = people.iloc[len(past) :].sample(frac=1, random_state=seed)[[*INPUTS]]
    asked, batch = rows.head(ASKED), rows.head(BATCH_ROWS)
    batch.to_json(folder / "batch.json", orient="records")
    batch.to_csv(folder / "batch.csv", index=False)
    batch.to_parquet(folder / "batch.parquet", index=False)
    return Prepared(
        data=source.caption,
        sha256=source.sha256,
        model_bytes=sum(path.stat().st_size for path in scorer.iterdir()),
        tag=bento.tag,
        scorer=str(scorer),
        logged=str(_logged(fitted.pipeline, past, folder)),
        encounters=asked.to_dict("records"),
        scores=_scores(fitted.pipeline, asked),
        batch_scores=_scores(fitted.pipeline, batch),
    )


def _scores(pipeline: "Pipeline", rows: "pd.DataFrame") -> list[float]:
    scores: list[float] = pipeline.predict_proba(rows)[:, 1].tolist()
    return scores


def _logged(pipeline: "Pipeline", past: "pd.DataFrame", folder: Path) -> Path:
    """Logs the pipeline as a training does; returns the model's folder."""
    import mlflow

    store, artifacts = f"sqlite:///{folder / 'mlflow.db'}", folder / "mlflow"
    with mlflow.start_run(experiment_id=experiments.use_experiment("serving", store, artifacts)):
        uri = experiments.log_model(mlflow, pipeline, past, past.head(ASKED), {})
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))


if __name__ == "__main__":
    silence_telemetry()
    target = Path(sys.argv[1])
    (target / "prepared.json").write_text(json.dumps(asdict(prepare(target, sys.argv[2]))))
