"""How often the gate is right: challengers whose worth is known, judged on resampled people.

On the published table (or the synthetic cohort) a champion is fitted on the initial encounters and
challengers of known faults on the same people. Each is judged on `--resamples` draws of 2,000
encounters, whole patients at a time, from all held-out people; the equal challenger is refitted on
a bootstrap of the learning patients each time. Writes `var/bench/gate.json` and a page.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import click
import numpy as np
import pandas as pd

from benchmarks.report import Run, table
from health_predict import encounters, features, fitting, gate, schema, splits
from health_predict.change_control import Design, change_control
from health_predict.evaluation import Verdict, judge
from health_predict.models import Candidate
from health_predict.subgroups import Contender, People

# A light model: the gate does not ask how its probabilities came about.
CANDIDATE = Candidate(
    "xgboost",
    {
        **{"rounds": 120, "learning_rate": 0.08, "max_depth": 4, "min_child_weight": 20.0},
        **{"subsample": 0.8, "colsample_bytree": 0.3, "reg_lambda": 5.0},
    },
)
WEAK = Candidate("logistic_regression", {"C": 0.001})
PEOPLE = 2_000


@dataclass(frozen=True)
class Challenger:
    """One of known worth.

    Attributes:
        name: what is wrong with it, if anything.
        expected: a piece of the sentence that has to be said; empty where it should pass.
        champion: probabilities (n,) of whom it is judged against.
        probabilities: (n,) of the held-out people; or one row (r, n) a resample.
        breaches: what the change control finds.
    """

    name: str
    expected: str
    champion: np.ndarray
    probabilities: np.ndarray
    breaches: tuple[str, ...] = ()


@click.command(help=__doc__)
@click.option("--data", default="synthetic", show_default=True, help="As HEALTH_PREDICT_DATA.")
@click.option("--resamples", default=200, show_default=True, type=click.IntRange(1))
def main(data: str, resamples: int) -> None:
    """Runs the benchmark."""
    run = Run("gate", "How often the gate is right about known challengers")
    snapshot = _snapshot(data)
    people = gate.people(splits.on_side(snapshot, "test"))
    with ProcessPoolExecutor(2) as pool:
        challengers = _challengers(snapshot, resamples, pool.map)
        rows = [_judged(one, people, resamples, pool.map) for one in challengers]
    result = {"data": data, "resamples": resamples, "challengers": rows}
    promoted = {f"{row['challenger']}, promoted of all": row["promoted"] for row in rows}
    run.publish(promoted, result, page(rows))


def _snapshot(data: str) -> pd.DataFrame:
    # Of two fifths of them enough are held out: some 15 % of patients.
    raw, _ = encounters.read(data, rows=60_000, seed=7)
    cohort = encounters.cohort(encounters.apply_contract(raw)[0], "any")
    return splits.with_side(cohort.head(len(cohort) // 5 * 2))


def _fit(snapshot: pd.DataFrame, candidate: Candidate = CANDIDATE) -> np.ndarray:
    """Returns the probabilities (n,) that a model gives the held-out people."""
    preprocessor = fitting.fit_preprocessor(snapshot)
    fitted = fitting.learn(snapshot, preprocessor, candidate, seed=0)
    people = splits.on_side(snapshot, "test")
    probabilities: np.ndarray = fitted.pipeline.predict_proba(people)[:, 1]
    return probabilities


def _challengers(
    snapshot: pd.DataFrame, resamples: int, run: Callable[..., Any]
) -> list[Challenger]:
    rng = np.random.default_rng(0)
    people = splits.on_side(snapshot, "test")
    champion, weak = _fit(snapshot), _fit(snapshot, WEAK)
    design = _design(len(snapshot))
    shuffled = snapshot.assign(label=rng.permutation(snapshot[schema.LABEL].to_numpy()))
    shuffled[schema.LABEL] = shuffled[schema.LABEL].where(
        snapshot[schema.SIDE] != "test", snapshot[schema.LABEL]
    )
    men = (people["gender"] == "Male").to_numpy()
    leaked = 0.9 * champion + 0.1 * people[schema.LABEL].to_numpy()
    # Far better for women, and of men it knows no more than their mean.
    lopsided = np.where(men, rng.permutation(champion), leaked)
    deeper = replace(design, params={**design.params, "max_depth": 12})
    leaking = replace(design, features=[*design.features, "readmitted"])
    control = change_control()
    return [
        Challenger(
            "equal: refitted on a bootstrap",
            "no better than the champion",
            champion,
            np.array(list(run(partial(_refit, snapshot), range(resamples)))),
        ),
        Challenger("labels shuffled", "may rank worse", champion, _fit(shuffled)),
        Challenger("probabilities times 1.3", "not calibrated", champion, _times(champion, 1.3)),
        Challenger("better overall, worse for men", "gender: Male", weak, lopsided),
        Challenger(
            "a column that knows the outcome",
            "feature readmitted is not listed",
            champion,
            leaked,
            tuple(control.breaches(leaking)),
        ),
        Challenger(
            "deeper than change control allows",
            "max_depth 12 is outside",
            weak,
            champion,
            tuple(control.breaches(deeper)),
        ),
        Challenger("better than a weak champion", "", weak, champion),
    ]


def _times(probabilities: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(probabilities * factor, 0, 1)


def _design(rows: int) -> Design:
    return Design(
        label="any",
        family=CANDIDATE.family,
        params=CANDIDATE.params,
        calibration="sigmoid",
        features=[*features.NUMERIC, *features.CATEGORICAL],
        train_rows=rows,
        threshold=0.5,
        bytes=100_000,
        latency_ms=1.0,
    )


def _refit(snapshot: pd.DataFrame, seed: int) -> np.ndarray:
    return _fit(_bootstrap(snapshot, np.random.default_rng(seed)))


def _bootstrap(snapshot: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Returns the snapshot with the train side drawn anew, whole patients at a time."""
    train = splits.on_side(snapshot, "train")
    patients, counts = np.unique(
        rng.choice(train[schema.PATIENT].unique(), train[schema.PATIENT].nunique()),
        return_counts=True,
    )
    times = train[schema.PATIENT].map(dict(zip(patients, counts, strict=True))).fillna(0)
    drawn = train.loc[train.index.repeat(times.astype(int))]
    others = snapshot[snapshot[schema.SIDE] != "train"]
    return pd.concat([drawn, others]).sort_values(schema.POSITION, ignore_index=True)


def _judged(
    one: Challenger, people: People, resamples: int, run: Callable[..., Any]
) -> dict[str, Any]:
    verdicts: list[Verdict] = list(run(partial(_one, one, people), range(resamples)))
    told = Counter(c.name for v in verdicts for c in v.clauses if not c.holds)
    better = sum(v.clauses[0].holds for v in verdicts)
    return {
        "challenger": one.name,
        "promoted": sum(v.promoted for v in verdicts) / resamples,
        "called_better": better / resamples,
        "said": one.expected,
        "said_share": sum(one.expected in v.sentence for v in verdicts) / resamples,
        "broken_clauses": {name: count / resamples for name, count in told.most_common()},
        "example": verdicts[0].sentence,
        "scores": asdict(verdicts[0].challenger),
    }


def _one(one: Challenger, people: People, number: int) -> Verdict:
    rows = _drawn(people.patients, number)
    new = one.probabilities if one.probabilities.ndim == 1 else one.probabilities[number]
    return judge(
        People(
            people.labels[rows],
            people.patients[rows],
            {name: values[rows] for name, values in people.groups.items()},
        ),
        Contender(new[rows]),
        Contender(one.champion[rows]),
        breaches=one.breaches,
        newest=fitting.CALIBRATION_ROWS,
        seed=number,
    )


def _drawn(patients: np.ndarray, seed: int) -> np.ndarray:
    """Returns the rows of patients drawn without replacement, in order of arrival."""
    unique, patient = np.unique(patients, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(unique))[patient]
    return np.flatnonzero(place <= np.sort(place)[PEOPLE - 1])


def page(rows: list[dict[str, Any]]) -> str:
    """Returns the verdicts as Markdown."""
    cells = [
        (
            *(row["challenger"], f"{row['promoted']:.1%}", f"{row['called_better']:.1%}"),
            f"{row['said'] or 'promoted'}: {row['said_share']:.1%}",
        )
        for row in rows
    ]
    return table(("challenger", "promoted", "called better", "says"), cells)


if __name__ == "__main__":
    main()
