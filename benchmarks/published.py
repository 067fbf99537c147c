"""Figures of others on the same rows: their protocols rebuilt, our features and families in them.

Only what is said of rows, label and split is rebuilt. Preprocessing and search are not: our
features and each family's defaults stand in their place. The two papers draw rows without regard to
time, so what serves a model in time is left out there (weights by recency, calibration on the
newest). Patients may be on both sides, as with all of them.

TableShift: Gardner, Popovic, Schmidt, "Benchmarking Distribution Shift in Tabular Data with
TableShift", NeurIPS 2023 Datasets and Benchmarks, arXiv:2312.07577, task Hospital Readmission. The
figures are those of results/best_id_accuracy_results_by_task_and_model.csv in its repository
(github.com/mlfoundations/tableshift), the protocol that of its code there: any readmission, rows
without a race left out, everybody who was not admitted through the emergency room split 80/10/10,
the others held out as another world, the admission source left out of the features.

Cureus: Emi-Johnson, Nkrumah, "Predicting 30-Day Hospital Readmission in Patients With Diabetes
Using Machine Learning on Electronic Health Record Data", Cureus 17(4):e82437, 2025, doi
10.7759/cureus.82437; figures and protocol are those of its abstract: all 101,766 encounters,
readmission within 30 days, 80/20. How the 20 % were drawn it does not say: here they are drawn at
random, the label's rate kept, several times.

The predecessor of this project, the pipeline of the Airflow era, was measured on the same rows: any
readmission, its first 20 % split by rows in order of arrival.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.prequential import figures, learn, probabilities
from health_predict import encounters, features, metrics, models, schema, splits
from health_predict.models import FAMILIES, Candidate, Sample

if TYPE_CHECKING:
    import pandas as pd

TABLESHIFT_SEED = 264_738
"""`DEFAULT_RANDOM_STATE` of the benchmark: the same rows fall on the same sides."""
TABLESHIFT_SIDES = ("id_test", "ood_test")
# Accuracy on the two test sides. "majority" is that of the estimators which predicted nothing but
# the commoner outcome (DANN, VREX): it tells whether the rows are the same.
TABLESHIFT: dict[str, tuple[float, float]] = {
    "majority": (0.5838581758805692, 0.5061607283001098),
    "XGBoost": (0.6508047585724284, 0.605281745408884),
    "LightGBM": (0.6575693958479123, 0.5981203892638518),
    "CatBoost": (0.6594355026825286, 0.618368388008162),
    "NODE": (0.6592022393282015, 0.6238031706168576),
}
CUREUS = {"xgboost": 0.667, "logistic_regression": 0.642, "random_forest": 0.630}
CUREUS_SPLITS = 5
PREDECESSOR = {"test": 0.696, "later": 0.6575}
"""AUC on the test rows of its first 20 %, and of the same model on the later 80 %."""
PROTOCOLS = ("tableshift", "cureus", "predecessor")
RESAMPLES = 400


def rebuilt(raw: "pd.DataFrame", seed: int) -> dict[str, Any]:
    """Returns all comparisons.

    Args:
        raw: the published table, all of it, in the order of its file.
        seed: seed of our estimators, and of the splits that a paper does not tell.
    """
    typed, broken = encounters.apply_contract(raw)
    if len(broken):
        raise ValueError(f"{len(broken)} rows break the contract: this is not the published table")
    return {
        "tableshift": tableshift(typed, seed),
        "cureus": cureus(typed, seed),
        "predecessor": predecessor(encounters.cohort(typed, "any"), seed),
    }


def tableshift(typed: "pd.DataFrame", seed: int) -> dict[str, Any]:
    """Returns accuracy and AUC of each family on TableShift's own rows."""
    told = typed[typed["race"] != schema.MISSING].reset_index(drop=True)
    outcome = told[schema.OUTCOME].isin(schema.POSITIVE_OUTCOMES["any"]).to_numpy(dtype=float)
    sides = tableshift_sides(told)
    tests = {side: sides[side] for side in TABLESHIFT_SIDES}
    forecasts = {
        family: _foretold(told, outcome, sides["train"], tests, family, seed) for family in FAMILIES
    }
    patients = told[schema.PATIENT].to_numpy()
    return {
        "rows": {side: len(places) for side, places in sides.items()},
        "majority": {side: float(1 - outcome[places].mean()) for side, places in tests.items()},
        "published": {
            name: dict(zip(TABLESHIFT_SIDES, pair, strict=True))
            for name, pair in TABLESHIFT.items()
        },
        "ours": {
            family: {
                side: {
                    **figures(
                        outcome[places], foretold[side], patients[places], resamples=RESAMPLES
                    ),
                    **_accuracy(outcome[places], foretold[side], patients[places]),
                }
                for side, places in tests.items()
            }
            for family, foretold in forecasts.items()
        },
    }


def tableshift_sides(told: "pd.DataFrame") -> dict[str, np.ndarray]:
    """Returns side -> places of its rows, drawn as TableShift's `DomainSplitter` draws them."""
    from sklearn.model_selection import train_test_split

    emergency = (told["admission_source_id"] == schema.EMERGENCY_ROOM).to_numpy()
    train, rest = train_test_split(
        np.flatnonzero(~emergency), test_size=0.2, random_state=TABLESHIFT_SEED
    )
    validation, test = train_test_split(rest, test_size=0.5, random_state=TABLESHIFT_SEED)
    elsewhere, _ = train_test_split(
        np.flatnonzero(emergency), test_size=0.1, random_state=TABLESHIFT_SEED
    )
    return {"train": train, "validation": validation, "id_test": test, "ood_test": elsewhere}


def cureus(typed: "pd.DataFrame", seed: int) -> dict[str, Any]:
    """Returns the AUC of each family for readmission within 30 days, over several splits."""
    from sklearn.model_selection import train_test_split

    outcome = typed[schema.OUTCOME].isin(schema.POSITIVE_OUTCOMES["30d"]).to_numpy(dtype=float)
    aucs: dict[str, list[float]] = {family: [] for family in FAMILIES}
    for number in range(CUREUS_SPLITS):
        train, test = train_test_split(
            np.arange(len(typed)), test_size=0.2, random_state=seed + number, stratify=outcome
        )
        for family, found in aucs.items():
            foretold = _foretold(typed, outcome, train, {"test": test}, family, seed, without="")
            everyone = metrics.plain(outcome[test])
            found.append(float(metrics.auc(outcome[test], foretold["test"], everyone)[0]))
    return {
        "rows": len(typed),
        "splits": CUREUS_SPLITS,
        "published": CUREUS,
        "ours": {
            family: {"auc": float(np.mean(a)), "auc_low": min(a), "auc_high": max(a)}
            for family, a in aucs.items()
        },
    }


def predecessor(people: "pd.DataFrame", seed: int) -> dict[str, Any]:
    """Returns how what ships fares under the predecessor's protocol."""
    initial = people.head(int(len(people) * splits.INITIAL_SHARE))
    ends = np.round(np.cumsum(list(splits.SIDES.values())) * len(initial)).astype(int)
    by_row = np.repeat(list(splits.SIDES), np.diff(ends, prepend=0))
    first = initial.assign(**{schema.SIDE: by_row})
    fitted = learn(first, seed)
    sides = {"test": splits.on_side(first, "test"), "later": people.iloc[len(first) :]}
    return {
        "published": PREDECESSOR,
        "ours": {
            side: figures(
                rows[schema.LABEL].to_numpy(dtype=float),
                probabilities(fitted, rows),
                rows[schema.PATIENT].to_numpy(),
                resamples=RESAMPLES,
            )
            for side, rows in sides.items()
        },
    }


def _foretold(
    typed: "pd.DataFrame",
    outcome: np.ndarray,
    train: np.ndarray,
    tests: dict[str, np.ndarray],
    family: str,
    seed: int,
    without: str = "admission_source_id",
) -> dict[str, np.ndarray]:
    """Returns side -> what a family's default, learned from the train rows, says of its rows."""
    learning = typed.iloc[train]
    preprocessor = features.preprocessor().fit(learning)
    places = features.columns(preprocessor)
    chosen = [place for name, found in places.items() if name != without for place in found]

    def matrix(rows: "pd.DataFrame") -> np.ndarray:
        x: np.ndarray = preprocessor.transform(rows)[:, chosen].astype(np.float32)
        return x

    sample = Sample(matrix(learning), outcome[train])
    estimator = models.fit(Candidate(family, FAMILIES[family].default), sample, seed)
    return {
        side: estimator.predict_proba(matrix(typed.iloc[rows]))[:, 1]
        for side, rows in tests.items()
    }


def _accuracy(labels: np.ndarray, foretold: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """Returns the share of rows on the right side of one half, with its interval."""
    right = ((foretold >= 0.5) == (labels > 0)).astype(float)
    weights = metrics.by_patient(patients, seed=0, resamples=RESAMPLES)
    low, high = metrics.interval((weights @ right) / weights.sum(axis=1))
    return {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}
