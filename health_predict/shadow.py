"""A new version beside the old one: it scores again what was asked lately, and nobody hears it.

What comes of it stands in the release record: how often both would have said the same, by how much
scores moved, how fast it answered. It says what will change; whether that is for the better the
gate has decided already.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from health_predict import prediction_log
from health_predict.cluster import Cluster, ClusterError, Unreachable
from health_predict.release import NAME, Say
from health_predict.schema import INPUTS
from health_predict.verification import NOT_AN_ANSWER, GoldenRow

SHADOW = f"{NAME}-shadow"
ROWS = 200
"""Most requests that are scored again: a share of them is then known to 7 points."""

_INSTANCE = "app.kubernetes.io/instance"
_SECONDS = 300.0
Object = dict[str, Any]


@dataclass(frozen=True)
class Shadow:
    """What came of a shadow.

    Attributes:
        rows: requests scored again.
        source: where they came from, in words.
        agreement: share that falls on the same side of the threshold; None without rows.
        mean_shift: mean of new score - old score.
        largest_shift: largest |new score - old score|.
        median_ms: median milliseconds of an answer, through the API server.
        problem: why the version cannot be rolled out; empty if nothing speaks against it.
    """

    rows: int = 0
    source: str = ""
    agreement: float | None = None
    mean_shift: float | None = None
    largest_shift: float | None = None
    median_ms: float | None = None
    problem: str = ""


def beside(objects: Sequence[Object]) -> list[Object]:
    """Returns the Deployment of a rendering as a shadow: one pod that no Service selects."""
    (deployment,) = [deepcopy(o) for o in objects if o["kind"] == "Deployment"]
    deployment["metadata"]["name"] = SHADOW
    template = deployment["spec"]["template"]
    for labels in (
        deployment["metadata"]["labels"],
        deployment["spec"]["selector"]["matchLabels"],
        template["metadata"]["labels"],
    ):
        labels[_INSTANCE] = SHADOW
    deployment["spec"]["replicas"] = 1
    return [deployment]


def run(
    cluster: Cluster,
    objects: Sequence[Object],
    traffic: Path,
    golden: Sequence[GoldenRow],
    headers: Mapping[str, str],
    say: Say,
) -> Shadow:
    """Runs a shadow, compares, and takes it away again.

    Args:
        cluster: where.
        objects: as `beside` returns them.
        traffic: folder of the prediction log; without a row in it the golden rows stand in.
        golden: rows with the new pipeline's scores.
        headers: sent with each request.
        say: told what happens, a sentence at a time.
    """
    asked, source = _asked(traffic, golden)
    try:
        cluster.apply(objects, say)
        rollout = cluster.await_rollout(SHADOW, say, _SECONDS)
        pods = cluster.ready_pods(SHADOW)
        if rollout.problem or not pods:
            words = rollout.problem or "its pod is not ready any more"
            return Shadow(problem=f"did not become ready as a shadow: {words}")
        pod = pods[0]
        answers, seconds = [], []
        for encounter, _ in asked:
            began = time.perf_counter()
            status, answer = cluster.ask_pod(pod, "/predict", encounter, headers)
            seconds.append(time.perf_counter() - began)
            if status != 200:
                return Shadow(problem=f"answers {status} to a request of {source}: {answer}")
            answers.append(answer)
        _, facts = cluster.ask_pod(pod, "/model-info", None, headers)
        return compare([score for _, score in asked], answers, seconds, facts["threshold"], source)
    except Unreachable:
        raise
    except ClusterError as error:
        return Shadow(problem=f"failed as a shadow: {error}")
    except NOT_AN_ANSWER as error:
        return Shadow(problem=f"does not answer as the service does: {error!r}")
    finally:
        cluster.take_away(SHADOW)


def compare(
    old: Sequence[float],
    new: Sequence[Mapping[str, Any]],
    seconds: Sequence[float],
    threshold: float,
    source: str,
) -> Shadow:
    """Returns how the new version's answers differ from the old scores."""
    if not old:
        return Shadow(source=source)
    shifts = [a["probability_score"] - score for a, score in zip(new, old, strict=True)]
    same = [
        (score >= threshold) == bool(a["prediction"]) for a, score in zip(new, old, strict=True)
    ]
    return Shadow(
        rows=len(old),
        source=source,
        agreement=sum(same) / len(same),
        mean_shift=sum(shifts) / len(shifts),
        largest_shift=max(abs(shift) for shift in shifts),
        median_ms=1000 * median(seconds),
    )


def _asked(
    traffic: Path, golden: Sequence[GoldenRow]
) -> tuple[list[tuple[dict[str, Any], float]], str]:
    """Returns the newest logged requests with the scores they were answered with."""
    cursor: prediction_log.Cursor = {}
    kept: list[dict[str, Any]] = []
    while (page := prediction_log.read(traffic, cursor, 10 * ROWS)).rows:
        traffic_rows = [
            row
            for row in page.rows
            if row[prediction_log.REQUEST_ID] != prediction_log.VERIFICATION
        ]
        kept = (kept + traffic_rows)[-ROWS:]
        cursor = page.cursor
    if not kept:
        return [(row.encounter, row.score) for row in golden], "golden rows: nothing was logged"
    pairs = [({c: row[c] for c in INPUTS}, row[prediction_log.SCORE]) for row in kept]
    return pairs, f"the prediction log: its newest {len(kept)} requests"
