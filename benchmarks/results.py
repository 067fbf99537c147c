"""What keeping the model fresh is worth, what drift gating saves and costs, and how others fare.

The later 80 % of the encounters arrive in batches, each foretold by the model of the day under five
policies (`policies`); then the protocols of others are rebuilt on the same rows (`published`).
Writes `var/bench/results.json`, for the synthetic cohort `results-synthetic.json`, and a page; with
`--write-docs` the tables of `docs/results.md` too. Features and defaults were chosen on later parts
of the published table: the differences between policies stand, the levels flatter.
"""

from typing import Any

import click
import numpy as np

from benchmarks import published, tables
from benchmarks.policies import ALWAYS, GATED, NEVER, REFUSED, Courses, courses
from benchmarks.prequential import (
    MEASURES,
    Part,
    Resampled,
    arriving,
    cohort,
    figures,
    miscalibration,
)
from benchmarks.report import Run
from benchmarks.report import write as write  # `scaling` takes it from here
from health_predict import encounters, metrics
from health_predict.encounters import UCI_SHA256
from health_predict.schema import LabelName
from health_predict.settings import ROOT, Settings

DOCS = ROOT / "docs" / "results.md"
SHOWN = {
    "published": ("run", "policies", "saved", "batches", "decisions", *published.PROTOCOLS),
    "synthetic": ("run", "policies", "saved"),
}
"""Kind of data -> blocks that the document has markers for."""
RESAMPLES = 400


@click.command(help=__doc__)
@click.option("--data", default=lambda: Settings().data, help="As HEALTH_PREDICT_DATA.")
@click.option("--rows", default=60_000, show_default=True, help="Of the synthetic cohort.")
@click.option("--label", type=click.Choice(["any", "30d"]), default="any", show_default=True)
@click.option("--batch-rows", default=5_000, show_default=True, type=click.IntRange(200))
@click.option("--seed", default=lambda: Settings().seed, type=int)
@click.option("--write-docs", is_flag=True, help="Fill in docs/results.md.")
def main(
    data: str, rows: int, label: LabelName, batch_rows: int, seed: int, write_docs: bool
) -> None:
    """Runs the benchmark."""
    people, source = cohort(data, label, rows)
    kind = "synthetic" if source.synthetic else "published"
    run = Run("results-synthetic" if source.synthetic else "results", f"Results: {source.caption}")
    batches = arriving(people, batch_rows)
    result: dict[str, Any] = {
        **{"data": source.caption, "sha256": source.sha256, "label": label, "seed": seed},
        **{"encounters": len(people), "batch_rows": batch_rows, "batches": len(batches)},
        **compared(batches, courses(batches, label, seed)),
        "rebuilt": None,
    }
    if source.sha256 == UCI_SHA256:
        raw, _ = encounters.read(data, rows=rows, seed=seed)
        result["rebuilt"] = published.rebuilt(raw, seed)
    blocks = tables.blocks(result)
    run.publish(ratios(result), result, *blocks.values())
    if write_docs:
        blocks["run"] = tables.circumstances(result, run)
        write(DOCS, {f"{kind}:{name}": blocks[name] for name in SHOWN[kind] if name in blocks})
        click.echo(f"written to {DOCS}")


def compared(batches: list[Part], ran: Courses) -> dict[str, Any]:
    """Returns each policy's figures a batch, and its means less those of training always.

    Intervals are resampled by patient; a difference is paired: the same people, drawn together.
    """
    resampled = Resampled(batches, RESAMPLES)
    summed = {"auc": metrics.auc, "brier": metrics.brier, "miscalibration": miscalibration}
    means = {
        policy: {name: resampled.mean(measure, forecast) for name, measure in summed.items()}
        for policy, forecast in ran.forecasts.items()
    }
    return {
        "policies": {
            policy: {
                "trainings": ran.trainings[policy],
                **{f"mean_{name}": float(mean[0]) for name, mean in found.items()},
                **{
                    f"{name}_less_always": _difference(mean - means[ALWAYS][name])
                    for name, mean in found.items()
                },
                "batches": [
                    figures(batch.labels, foretold, batch.patients, resamples=RESAMPLES)
                    for batch, foretold in zip(batches, ran.forecasts[policy], strict=True)
                ],
            }
            for policy, found in means.items()
        },
        "decisions": ran.decisions,
        "measures": list(MEASURES),
    }


def _difference(less: np.ndarray) -> dict[str, float]:
    low, high = metrics.interval(less[1:])
    return {"mean": float(less[0]), "low": low, "high": high}


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Returns trainings, and what is gained over never training, over those of training always."""
    policies = result["policies"]
    never, always = (policies[name]["mean_auc"] for name in (NEVER, ALWAYS))
    found = {}
    for name in (GATED, REFUSED):
        trainings = policies[name]["trainings"] / max(1, policies[ALWAYS]["trainings"])
        found[f"{name}: trainings to always"] = trainings
        if always != never:
            gain = (policies[name]["mean_auc"] - never) / (always - never)
            found[f"{name}: AUC gained over never, to always"] = gain
    return found


if __name__ == "__main__":
    main()
