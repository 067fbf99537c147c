"""Loop reports of any number of batches, for the tests of what is drawn and written of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from health_predict.estimation import Measured
from health_predict.evidence import Bin, Foretold, Gain, NetBenefit
from health_predict.loop_report import BatchReport, Champion, Links, LoopReport, Moved, Served
from health_predict.story import BatchStory, Drift, LoopStory, Outcome, Promotion
from health_predict.subgroups import GroupScores

ARRIVED = 1_770_000_000.0
DAY = 86_400.0
COLUMNS = (
    *("payer_code", "discharge_disposition_id", "medical_specialty", "number_diagnoses"),
    *("admission_source_id", "diag_1", "diag_2", "insulin", "A1Cresult", "max_glu_serum"),
)
_TURNS: tuple[Outcome, ...] = (
    *("no_action", "promoted", "no_action", "refused", "rests", "no_action"),
)


def report(count: int, page: Path, *, outcomes: bool = True, seed: int = 0) -> LoopReport:
    """Returns a report of so many batches.

    Args:
        count: of batches; the outcome of the last one is not known unless it is the only one.
        page: where the page is to be written.
        outcomes: whether any outcome is known.
        seed: of the figures.
    """
    rng = np.random.default_rng(seed)
    promotions = [Promotion("1", "initial", "xgboost", "Promoted as the first champion.")]
    refusals: list[str] = []
    batches = []
    for index in range(count):
        decision = _TURNS[(index + 1) % len(_TURNS)]
        known = outcomes and (index < count - 1 or count == 1)
        name, scored_by = f"batch-{index + 1:04d}", promotions[-1].version
        verdict = ""
        if decision == "promoted":
            version = str(len(promotions) + 1)
            verdict = f" Promoted on 2,000 encounters as number {version}."
            promotions.append(
                Promotion(version, f"initial to {name}", "random_forest", verdict.strip())
            )
        if decision == "refused":
            verdict = f" Refused on 2,000 encounters after {name}."
            refusals.append(verdict.strip())
        batches.append(_batch(rng, index, name, decision, verdict, scored_by, known))
    return _whole(page, batches, promotions, refusals, outcomes)


def _batch(
    rng: np.random.Generator,
    index: int,
    name: str,
    decision: Outcome,
    verdict: str,
    scored_by: str,
    known: bool,
) -> BatchReport:
    drifted = decision != "no_action"
    statistic = float(rng.uniform(0.71, 0.99) if drifted else rng.uniform(0.5, 0.69))
    auc, ratio = float(rng.normal(0.67, 0.01)), float(rng.normal(1.05, 0.12))
    told = BatchStory(
        name,
        Drift(statistic, 0.7, drifted),
        decision,
        f"{'Major' if drifted else 'Minor'} drift of {name}, AUC {statistic:.3f}.{verdict}",
        scored_by,
        auc if known else None,
        ratio if known else None,
    )
    champion = foretold(scored_by, auc, ratio) if known else None
    first = champion if scored_by == "1" else foretold("1", auc - 0.012, ratio + 0.1)
    return BatchReport(
        told=told,
        arrived=ARRIVED + index * DAY,
        chance_bound=0.52 + 0.005 * (index % 3),
        false_alarm_rate=0.01,
        moved=[
            Moved(column, float(rng.gamma(1, 0.3)), 0.05, f"{column} (PSI 0.30) in {name}")
            for column in COLUMNS
            if rng.random() < 0.6
        ],
        champion=champion,
        first=first if known else None,
        evidently=f"file:///nowhere/drift_reports/{name}/report.html",
    )


def foretold(version: str, auc: float, ratio: float) -> Foretold:
    """Returns how well a version foretold a batch of 3,900."""
    return Foretold(
        version,
        3_900,
        1_700,
        Measured(auc, auc - 0.02, auc + 0.02),
        Measured(ratio, ratio - 0.05, ratio + 0.05),
    )


def _whole(
    page: Path,
    batches: list[BatchReport],
    promotions: list[Promotion],
    refusals: list[str],
    outcomes: bool,
) -> LoopReport:
    parts = {"until the sensor asks": 4.3, "retrain: hpo_results": 22.2, "deploy: bento": 1.7}
    story = LoopStory(
        data="synthetic cohort",
        source="synthetic",
        batches=[batch.told for batch in batches],
        promotions=promotions,
        refusals=refusals,
        rollbacks=["Drill: Rolled back: version 1-drill scores golden row 0 wrongly."],
        champion_version=promotions[-1].version,
        seconds={
            "retrains": [
                {"version": p.version, "drift_to_served": 28.2, "parts": parts}
                for p in promotions[1:]
            ]
        },
    )
    later = outcomes and any(b.champion and b.champion.version != "1" for b in batches)
    return LoopReport(
        made=ARRIVED + len(batches) * DAY,
        page=str(page),
        run_id="0f3a5b7c-run",
        story=story,
        first_version="1",
        batches=batches,
        gain=Gain(3, 11_700, 0.671, 0.659, Measured(0.012, 0.004, 0.02), 1.02, 1.13)
        if later
        else None,
        champion_bins=_bins(0.0) if outcomes and batches else [],
        first_bins=_bins(0.03) if outcomes and batches else [],
        benefits=_benefits() if outcomes and batches else [],
        served=[
            Served(
                version=p.version,
                since=ARRIVED + place * DAY,
                until=ARRIVED + (place + 1) * DAY if place < len(promotions) - 1 else None,
                family=p.family,
                window=p.window,
                image=f"readmission:{p.version}@sha256:{'7d2b5e75c661' * 5}abcd",
                record="s3://kept/releases/release-1.json",
            )
            for place, p in enumerate(promotions)
        ],
        champion=Champion(
            version=promotions[-1].version,
            family=promotions[-1].family,
            run_id="78e7f5f4",
            threshold=0.5,
            threshold_reason="A needless intervention costs one foreseen readmission.",
            held_out=2_000,
            auc=0.684,
            groups=[
                GroupScores("race: Caucasian", 1_400, 640, 0.68, 0.65, 0.71, 1.02, "", False),
                GroupScores("gender: Female", 1_060, 500, 0.62, 0.58, 0.65, 1.11, "", True),
                GroupScores("age: [0-10)", 3, 1, None, None, None, None, "too few to say", False),
            ],
            importance=[("log_inpatient", 0.2), ("number_diagnoses", 0.1), ("payer_code", 0.01)],
        ),
        links=Links("http://127.0.0.1:3000", "http://127.0.0.1:5000"),
    )


def _bins(off: float) -> list[Bin]:
    risks = np.linspace(0.2, 0.8, 10)
    return [Bin(390, r, Measured(r - off, r - off - 0.05, r - off + 0.05)) for r in risks.tolist()]


def _benefits() -> list[NetBenefit]:
    thresholds = np.arange(0.22, 0.8, 0.01).round(2).tolist()
    return [
        NetBenefit(
            t,
            max(0.0, 44 * (1 - t) - 6),
            max(0.0, 43 * (1 - t) - 7),
            100 * (0.44 - 0.56 * t / (1 - t)),
        )
        for t in thresholds
    ]


def nothing(page: Path) -> LoopReport:
    """Returns the report of a loop that has not begun."""
    empty = LoopStory("", "", [], [], [], [], None, seconds={"retrains": []})
    made = report(0, page)
    return replace(
        made, story=empty, first_version=None, batches=[], gain=None, served=[], champion=None
    )
