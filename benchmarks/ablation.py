"""What each feature is worth on later encounters: without one, with one more, without recency.

The later encounters are foretold in five parts, each by a model learned from all before it: XGBoost
and logistic regression with their defaults, on the shipped features, on these less one, and on
these with one that was dropped. Writes `var/bench/ablation.json` and a page: differences in mean
AUC to the shipped features, with standard errors. The rows were looked at when the features were
chosen: this shows what each is worth, not how the choice would do on new rows.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import click
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.prequential import Forecast, Part, Resampled, cohort, cut
from benchmarks.report import Run, table
from health_predict import features, fitting
from health_predict.features import Derived
from health_predict.models import FAMILIES, Estimator, Sample
from health_predict.schema import DIAGNOSES, MEDICATIONS, LabelName
from health_predict.settings import Settings

PARTS = 5
RESAMPLES = 200
SEEDS = 4
"""The shipped features are learned from with so many seeds: one may be lucky by .0007."""

# Strack et al. 2014, table 2: chapter -> ICD-9 numbers, both ends included.
CHAPTERS = {
    "circulatory": ((390, 459), (785, 785)),
    "respiratory": ((460, 519), (786, 786)),
    "digestive": ((520, 579), (787, 787)),
    "diabetes": ((250, 250),),
    "injury": ((800, 999),),
    "musculoskeletal": ((710, 739),),
    "genitourinary": ((580, 629), (788, 788)),
    "neoplasms": ((140, 239),),
}


def chapter(code: str) -> str:
    """Returns the chapter of an ICD-9 code, one of Strack's nine groups."""
    number = int(features.icd9_number(code))
    for name, spans in CHAPTERS.items():
        if any(low <= number <= high for low, high in spans):
            return name
    return "other"


def ratio(above: Any, below: Any) -> Any:
    """Returns a count for each of another, 1 added below."""
    return above / (below + 1.0)


def visits(*counts: Any) -> Any:
    """Returns the logarithm of all visits of the year before."""
    return np.log1p(sum(counts))


_VISITS = ("number_inpatient", "number_emergency", "number_outpatient")
DERIVED = {
    **{f"{d}_chapter": Derived((d,), chapter, elementwise=False) for d in DIAGNOSES},
    **{f"{d}_block": Derived((d,), features.icd9_block, elementwise=False) for d in DIAGNOSES[1:]},
    "drugs_per_day": Derived(("num_medications", "time_in_hospital"), ratio),
    "tests_per_day": Derived(("num_lab_procedures", "time_in_hospital"), ratio),
    "stays_per_emergency": Derived(_VISITS[:2], ratio),
    "log_visits": Derived(_VISITS, visits),
}

DROPPED = {
    "race": ("race",),
    "num_lab_procedures": ("num_lab_procedures",),
    "number_emergency, number_outpatient as counted": _VISITS[1:],
    "chapters of the diagnoses": tuple(f"{d}_chapter" for d in DIAGNOSES),
    "diag_2_block": ("diag_2_block",),
    "diag_3_block": ("diag_3_block",),
    "metformin": ("metformin",),
    "insulin": ("insulin",),
    "the other 21 drugs": tuple(m for m in MEDICATIONS if m not in ("metformin", "insulin")),
    "ratios of utilisation": ("drugs_per_day", "tests_per_day", "stays_per_emergency"),
    "log of all visits": ("log_visits",),
}
"""What was tried and left out: name -> features."""

FAINT = (
    *("time_in_hospital", "num_procedures", "num_medications", "diag_2_number", "diag_3_number"),
    *("medications_changed", "medications_taken"),
    *("gender", "max_glu_serum", "A1Cresult", "change", "diabetesMed"),
)
"""What is missed by nobody alone, the others being there: left out together."""

_NUMBERS = ("num_lab_procedures", *_VISITS, *(n for n, d in DERIVED.items() if d.elementwise))


@dataclass(frozen=True)
class Variant:
    """A change to what is learned from.

    Attributes:
        kind: `shipped`, `without`, `with` or `other`.
        name: what is changed.
        features: what the model sees.
        recency: whether newer rows count more.
        seed: what is added to the estimator's seed.
    """

    kind: str
    name: str
    features: tuple[str, ...]
    recency: bool = True
    seed: int = 0


def variants() -> list[Variant]:
    """Returns the shipped features and every change to them."""
    shipped = (*features.NUMERIC, *features.CATEGORICAL)
    return [
        *(Variant("shipped", f"shipped {i}", shipped, seed=i) for i in range(SEEDS)),
        Variant("other", "no recency weights", shipped, recency=False),
        *(
            Variant("without", " and ".join(names), tuple(f for f in shipped if f not in names))
            for names in _groups(shipped)
        ),
        Variant("without", "all of FAINT", tuple(f for f in shipped if f not in FAINT)),
        *(
            Variant("with", name, (*shipped, *added))
            for name, added in DROPPED.items()
            if not set(added) <= set(shipped)
        ),
    ]


def _groups(shipped: tuple[str, ...]) -> list[list[str]]:
    """Returns the features, those together that are made from the same one published column."""
    groups: dict[str, list[str]] = {}
    for feature in shipped:
        rule = features.DERIVED.get(feature)
        source = rule.columns if rule else (feature,)
        groups.setdefault(source[0] if len(source) == 1 else feature, []).append(feature)
    return list(groups.values())


def _xgboost(sample: Sample, seed: int) -> Estimator:
    params = FAMILIES["xgboost"].default
    estimator = FAMILIES["xgboost"].estimator(params, seed)
    # All rounds at once: stages are for a search that stops early, and cost twice the time.
    estimator.set_params(n_estimators=int(params["rounds"]))
    return estimator.fit(sample.x, sample.y, sample_weight=sample.weight)


def _logistic_regression(sample: Sample, seed: int) -> Estimator:
    family = FAMILIES["logistic_regression"]
    estimator = family.estimator(family.default, seed)
    # The optimum is the same; Newton's steps reach it in a tenth of the time.
    estimator.set_params(solver="newton-cholesky", max_iter=50, warm_start=False)
    return estimator.fit(sample.x, sample.y, sample_weight=sample.weight)


FITS: dict[str, Callable[[Sample, int], Estimator]] = {
    "xgboost": _xgboost,
    "logistic_regression": _logistic_regression,
}


@click.command(help=__doc__)
@click.option("--data", default=lambda: Settings().data, help="As HEALTH_PREDICT_DATA.")
@click.option("--label", type=click.Choice(["any", "30d"]), default="any")
@click.option("--seed", default=lambda: Settings().seed, type=int)
def main(data: str, label: LabelName, seed: int) -> None:
    """Runs the benchmark."""
    run = Run("ablation", "What each feature is worth on later encounters")
    people, source = cohort(data, label)
    parts, tried = cut(people, PARTS), variants()
    forecasts: dict[tuple[str, str], Forecast] = {
        (family, variant.name): [] for family, variant in product(FITS, tried)
    }
    for part in parts:
        for key, foretold in foretell(part, tried, seed).items():
            forecasts[key].append(foretold)
    result = {
        "data": source.caption,
        "sha256": source.sha256,
        "label": label,
        "seed": seed,
        "encounters": len(people),
        **differences(parts, tried, forecasts),
    }
    run.publish({}, result, page(result))


def foretell(part: Part, tried: list[Variant], seed: int) -> dict[tuple[str, str], np.ndarray]:
    """Returns what each family says of a part (n,), by family and name of the variant."""
    every = dict.fromkeys(feature for variant in tried for feature in variant.features)
    numeric = [f for f in every if f in features.NUMERIC or f in _NUMBERS]
    with mock.patch.multiple(
        features,
        NUMERIC=tuple(numeric),
        CATEGORICAL=tuple(f for f in every if f not in numeric),
        DERIVED={**features.DERIVED, **DERIVED},
    ):
        # Every column is encoded by itself: a variant's matrix is a choice of columns of this one.
        preprocessor = fitting.fit_preprocessor(part.past)
        train = fitting.sample(part.past, preprocessor, "train")
        x = preprocessor.transform(part.rows).astype(np.float32)
        places = features.columns(preprocessor)

    def fit(key: tuple[str, Variant]) -> np.ndarray:
        family, variant = key
        chosen = [place for feature in variant.features for place in places[feature]]
        sample = Sample(train.x[:, chosen], train.y, train.weight if variant.recency else None)
        estimator = FITS[family](sample, seed + variant.seed)
        foretold: np.ndarray = estimator.predict_proba(x[:, chosen])[:, 1]
        return foretold

    keys = list(product(FITS, tried))
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        foretold = pool.map(fit, keys)
        return {(k[0], k[1].name): p for k, p in zip(keys, foretold, strict=True)}


def differences(
    parts: list[Part], tried: list[Variant], forecasts: dict[tuple[str, str], Forecast]
) -> dict[str, Any]:
    """Returns the mean AUC of the shipped features and what each change adds to it.

    The error of a difference is that of drawing other patients and that of drawing another seed.
    """
    resampled = Resampled(parts, RESAMPLES)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = pool.map(resampled.mean_auc, forecasts.values())
        aucs = dict(zip(forecasts, measured, strict=True))
    changes: list[dict[str, Any]] = [
        {"kind": variant.kind, "name": variant.name} for variant in tried[SEEDS:]
    ]
    shipped = {}
    for family in FITS:
        seeds = np.array([aucs[family, variant.name] for variant in tried[:SEEDS]])
        spread = float(seeds[:, 0].std(ddof=1))
        shipped[family] = {"mean_auc": float(seeds[:, 0].mean()), "seed_spread": spread}
        for change in changes:
            less = aucs[family, change["name"]] - seeds.mean(axis=0)
            error = np.hypot(less[1:].std(), spread * np.sqrt(1 + 1 / SEEDS))
            change[family] = {"difference": float(less[0]), "error": float(error)}
    return {"shipped": shipped, "changes": changes}


def page(result: dict[str, Any]) -> str:
    """Returns the differences as Markdown, within each kind the largest loss first."""
    shipped = ", ".join(
        f"{family} {auc['mean_auc']:.4f} (between seeds ± {auc['seed_spread']:.4f})"
        for family, auc in result["shipped"].items()
    )
    said = (
        f"{result['encounters']:,} {result['data']}, label `{result['label']}`: mean AUC over "
        f"{PARTS} later parts with the shipped features: {shipped}."
    )
    rows = []
    for kind in ("other", "without", "with"):
        changes = [change for change in result["changes"] if change["kind"] == kind]
        for change in sorted(changes, key=lambda change: change["xgboost"]["difference"]):
            cells = (
                f"{change[family]['difference']:+.4f} ± {change[family]['error']:.4f}"
                for family in FITS
            )
            rows.append(("" if kind == "other" else kind, change["name"], *cells))
    return f"{said}\n\n{table(('change', '', 'xgboost', 'logistic regression'), rows, text=2)}"


if __name__ == "__main__":
    main()
