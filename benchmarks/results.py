"""What keeping the model fresh is worth on encounters in order of arrival, and what it is not.

The later encounters are foretold part by part: by a model frozen at the first 20 %, by the same one
with its calibration renewed, and by one learned anew from all that was before the part. Writes
`var/bench/results.json` and prints Markdown tables; differences first. Nothing of the loop runs
here, no gate and no drift decision: `health-predict loop` shows those.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from benchmarks.loop import machine
from benchmarks.prequential import Forecast, Part, Resampled, cohort, cut, figures, keep
from health_predict import fitting, metrics, models, search, splits
from health_predict.fitting import Fitted
from health_predict.models import FAMILIES, Candidate
from health_predict.schema import LABEL, PATIENT, SIDE, LabelName
from health_predict.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

COUNTS = (5, 16)
"""Parts the later encounters are cut into: of 16,000 published ones each, and of 5,000."""

POLICIES = ("never", "never, recalibrated", "always")
RESAMPLES = 400

# The peer's test AUC of its own split and the AUC of the same model on the later 80 %: measured
# with the Airflow-era pipeline on the same rows.
PEER = {"test": 0.696, "later": 0.6575}


@click.command(help=__doc__)
@click.option("--data", default=lambda: Settings().data, help="As HEALTH_PREDICT_DATA.")
@click.option("--label", type=click.Choice(["any", "30d"]), default="any")
@click.option("--search", "trials", default=0, help="Trials of a search before each refit.")
@click.option("--seed", default=lambda: Settings().seed, type=int)
def main(data: str, label: LabelName, trials: int, seed: int) -> None:
    """Runs the benchmark."""
    began = time.monotonic()
    people, source = cohort(data, label)
    result: dict[str, Any] = {
        "machine": machine(),
        "data": source.caption,
        "sha256": source.sha256,
        "label": label,
        "seed": seed,
        "trials": trials,
        "encounters": len(people),
        "first_fifth": first_fifth(people, trials, seed),
        "parts": {str(count): prequential(people, count, trials, seed) for count in COUNTS},
    }
    result["seconds"] = round(time.monotonic() - began, 1)
    path = keep(result, "results")
    sys.stdout.write(f"{tables(result)}\n\n{result['seconds']} s, written to {path}\n")


def refit(past: "pd.DataFrame", trials: int, seed: int) -> Fitted:
    """Returns the model that ships if this is the past: the default's, or a search's winner."""
    preprocessor = fitting.fit_preprocessor(past)
    candidate = Candidate("xgboost", FAMILIES["xgboost"].default)
    if trials:
        train, validation = (
            fitting.sample(past, preprocessor, side) for side in ("train", "validation")
        )
        sides = search.SearchData(train, validation)
        candidate = search.search_serially(sides, trials=trials, seed=seed).candidate
    return fitting.learn(past, preprocessor, candidate, seed=seed)


def recalibrated(fitted: Fitted, past: "pd.DataFrame") -> Fitted:
    """Returns the model with its calibration, and nothing else, from the newest of the past."""
    newest = splits.on_side(past, "validation").tail(fitting.CALIBRATION_ROWS)
    preprocessor, calibrated = (fitted.pipeline[name] for name in ("preprocess", "classifier"))
    classifier = calibrated.estimator.estimator  # inside calibration and `FrozenEstimator`
    x = preprocessor.transform(newest).astype(np.float32)
    y = newest[LABEL].to_numpy()
    pipeline = models.pipeline(preprocessor, classifier, x, y, fitted.calibration)
    return Fitted(pipeline, fitted.calibration, fitted.thresholds)


def probabilities(fitted: Fitted, rows: "pd.DataFrame") -> np.ndarray:
    """Returns the probability of readmission of each row (n,)."""
    foretold: np.ndarray = fitted.pipeline.predict_proba(rows)[:, 1]
    return foretold


def prequential(people: "pd.DataFrame", count: int, trials: int, seed: int) -> dict[str, Any]:
    """Returns how each policy fares on `count` later parts.

    The policies: `never` is frozen at the first 20 %; `never, recalibrated` has its calibration
    renewed before each part; `always` is learned anew, which includes the calibration.
    """
    parts = cut(people, count)
    forecasts: dict[str, Forecast] = {policy: [] for policy in POLICIES}
    seconds = []
    for part in parts:
        began = time.monotonic()
        fresh = refit(part.past, trials, seed)
        seconds.append(round(time.monotonic() - began, 2))
        if part.number == 1:
            frozen = fresh
        for policy, model in zip(
            POLICIES, (frozen, recalibrated(frozen, part.past), fresh), strict=True
        ):
            forecasts[policy].append(probabilities(model, part.rows))
    # In the first part all policies are one model.
    resampled = Resampled(parts[1:], RESAMPLES)
    never = resampled.mean_auc(forecasts["never"][1:])
    return {
        "refit_seconds": seconds,
        "policies": {
            policy: summary(parts, forecast, resampled.mean_auc(forecast[1:]) - never)
            for policy, forecast in forecasts.items()
        },
    }


def summary(parts: Sequence[Part], forecast: Forecast, less_never: np.ndarray) -> dict[str, Any]:
    """Returns the figures of one policy.

    Args:
        parts: what was foretold.
        forecast: what the policy said.
        less_never: (1 + resamples,) its mean AUC from the second part on, less the frozen model's.
    """
    each: list[dict[str, Any]] = []
    for part, foretold in zip(parts, forecast, strict=True):
        unseen = (part.rows[SIDE] == "test").to_numpy()
        everyone = (part.labels, foretold, part.patients)
        apart = figures(*(values[unseen] for values in everyone), resamples=RESAMPLES)
        each.append({**figures(*everyone, resamples=RESAMPLES), "test_side": apart})
    low, high = metrics.interval(less_never[1:])
    return {
        "auc_less_never": {"mean": float(less_never[0]), "low": low, "high": high},
        "mean_auc": float(np.mean([part["auc"] for part in each])),
        "mean_auc_test_side": float(np.mean([part["test_side"]["auc"] for part in each])),
        "mean_brier": float(np.mean([part["brier"] for part in each])),
        "mean_miscalibration": float(
            np.mean([abs(part["expected_observed"] - 1) for part in each])
        ),
        "parts": each,
    }


def first_fifth(people: "pd.DataFrame", trials: int, seed: int) -> dict[str, Any]:
    """Returns how a model fares under the peer's protocol: the first 20 %, split by rows in order.

    A patient may be on two sides here, as with the peer: the figures are comparable, and the test
    AUC is not one of people that nothing learned from.
    """
    initial = cut(people, 1)[0].past
    ends = np.round(np.cumsum(list(splits.SIDES.values())) * len(initial)).astype(int)
    by_row = np.repeat(list(splits.SIDES), np.diff(ends, prepend=0))
    first = initial.assign(**{SIDE: by_row})
    fitted = refit(first, trials, seed)
    later = people.iloc[len(first) :]
    return {
        name: figures(
            rows[LABEL].to_numpy(dtype=float),
            probabilities(fitted, rows),
            rows[PATIENT].to_numpy(),
            resamples=RESAMPLES,
        )
        for name, rows in (("test", splits.on_side(first, "test")), ("later", later))
    }


def tables(result: dict[str, Any]) -> str:
    """Returns the figures as Markdown: the policies, the peer, the parts."""
    lines = [
        f"\n{result['encounters']:,} {result['data']}, label `{result['label']}`: the later 80 % "
        "foretold part by part, AUC with 95 % intervals resampled by patient\n",
        "| parts | refitted | AUC less never, from part 2 on | mean AUC | on test people "
        "| mean abs(E/O - 1) | Brier |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count, run in result["parts"].items():
        for policy, row in run["policies"].items():
            less = row["auc_less_never"]
            gain = f"{less['mean']:+.4f} [{less['low']:+.4f}, {less['high']:+.4f}]"
            lines.append(
                f"| {count} | {policy} | {'' if policy == 'never' else gain} "
                f"| {row['mean_auc']:.4f} | {row['mean_auc_test_side']:.4f} "
                f"| {row['mean_miscalibration']:.3f} | {row['mean_brier']:.4f} |"
            )
    lines += [
        "\n| first 20 %, split by rows | less the peer | AUC | the peer's |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in result["first_fifth"].items():
        lines.append(
            f"| {name} | {row['auc'] - PEER[name]:+.4f} | {row['auc']:.4f} "
            f"[{row['auc_low']:.4f}, {row['auc_high']:.4f}] | {PEER[name]:.4f} |"
        )
    for count, run in result["parts"].items():
        lines += ["", *_parts(count, run)]
    return "\n".join(lines)


def _parts(count: str, run: dict[str, Any]) -> list[str]:
    never, recalibrated, always = (
        policy["parts"] for policy in (run["policies"][name] for name in POLICIES)
    )
    lines = [
        f"| part of {count} | AUC, always less never | always | never | E/O, always "
        "| never, recalibrated | never | n | rate |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, (n, r, a) in enumerate(zip(never, recalibrated, always, strict=True), start=1):
        lines.append(
            f"| {number} | {a['auc'] - n['auc']:+.4f} "
            f"| {a['auc']:.4f} [{a['auc_low']:.4f}, {a['auc_high']:.4f}] "
            f"| {n['auc']:.4f} [{n['auc_low']:.4f}, {n['auc_high']:.4f}] "
            f"| {a['expected_observed']:.3f} | {r['expected_observed']:.3f} "
            f"| {n['expected_observed']:.3f} | {n['n']:,} | {n['rate']:.3f} |"
        )
    return lines


if __name__ == "__main__":
    main()
