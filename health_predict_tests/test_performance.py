"""A batch is estimated at arrival and measured once its outcomes are known, on a real instance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from health_predict import metrics, schema
from health_predict.definitions import assemble
from health_predict.defs.automation import matured_decision
from health_predict.defs.facts import events
from health_predict.defs.partitions import served_key
from health_predict.settings import Settings

ARRIVAL = ("future_batch", "batch_predictions", "performance_estimate")
FIRST, SECOND = "batch-0001", "batch-0002"
NEVER = 1e9
"""Seconds until outcomes are known, where none are to be."""


@dataclass(frozen=True)
class World:
    """One state folder with its instance and a champion."""

    settings: Settings
    instance: dg.DagsterInstance

    def run(self, key: str, *assets: str, label_delay: float = 0.0) -> dg.ExecuteInProcessResult:
        """Materialises assets of one batch."""
        settings = self.settings.model_copy(update={"label_delay": label_delay})
        self.instance.add_dynamic_partitions("batches", [key])
        result = (
            assemble(settings)
            .get_repository_def()
            .get_job("ingest_batch")
            .execute_in_process(
                instance=self.instance,
                partition_key=key,
                asset_selection=[dg.AssetKey(name) for name in assets],
            )
        )
        assert result.success
        return result

    def path(self, asset: str, key: str) -> Path:
        return Path(self.settings.store_uri) / asset / f"{key}.parquet"

    def frame(self, asset: str, key: str) -> pd.DataFrame:
        return pd.read_parquet(self.path(asset, key))

    def newest(self, asset: str, key: str) -> dict[str, Any]:
        """Returns the metadata of the newest event of a batch."""
        return [e for e in events(self.instance, asset) if e.partition == key][-1].metadata

    @contextmanager
    def changed(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Iterator[None]:
        """Changes the first batch as it is stored, and puts it back."""
        kept = self.frame("future_batch", FIRST)
        try:
            change(kept.copy()).to_parquet(self.path("future_batch", FIRST), index=False)
            yield
        finally:
            kept.to_parquet(self.path("future_batch", FIRST), index=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = Settings(
        var=tmp_path_factory.mktemp("performance") / "var",
        rows=8_000,
        batches=4,
        trials=3,
        families="logistic_regression",
        search_backend="serial",
        seed=7,
    )
    with dg.instance_for_test() as instance:
        job = assemble(settings).get_repository_def().get_job("bootstrap")
        assert job.execute_in_process(instance=instance).success
        made = World(settings, instance)
        for key in (FIRST, SECOND):
            made.run(key, *ARRIVAL, "batch_performance", label_delay=NEVER)
        yield made


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def test_before_outcomes_are_known_there_is_an_estimate_and_no_performance(world: World) -> None:
    assert not events(world.instance, "batch_performance")
    told = world.newest("performance_estimate", FIRST)
    scores = world.frame("batch_predictions", FIRST)["probability"]
    assert told["expected_rate"] == pytest.approx(scores.mean())
    assert told["expected_auc_low"] < told["expected_auc"] < told["expected_auc_high"]
    assert told["sentence"].startswith("Before any outcome is known: ")
    assert (told["dagster/row_count"], told["champion_version"]) == (len(scores), "1")
    assert told["matured_share"] == 0


def test_a_batch_whose_outcomes_are_not_known_yet_says_so(world: World) -> None:
    result = world.run(SECOND, "batch_performance", label_delay=NEVER)
    assert not result.get_asset_materialization_events()
    assert "not scored yet" in log(world, result)


def log(world: World, result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(str(entry.user_message) for entry in world.instance.all_logs(result.run_id))


def test_once_outcomes_are_known_the_batch_is_measured_beside_its_estimate(world: World) -> None:
    result = world.run(FIRST, "batch_performance")
    told = world.newest("batch_performance", FIRST)
    expected = world.newest("performance_estimate", FIRST)
    labels = world.frame("future_batch", FIRST)[schema.LABEL].to_numpy(dtype=float)
    scores = world.frame("batch_predictions", FIRST)["probability"].to_numpy()
    auc = metrics.auc(labels, scores, metrics.plain(labels))[0]
    assert told["auc"] == pytest.approx(auc)
    assert told["expected_observed"] == pytest.approx(scores.sum() / labels.sum())
    assert told["estimate_error_auc"] == pytest.approx(expected["expected_auc"] - auc)
    assert told["estimate_error_rate"] == pytest.approx(scores.mean() - labels.mean())
    assert told["sentence"].startswith("Expected/observed ")
    assert told["champion_version"] == "1"
    assert told["within_bounds"] in (True, False)
    assert set(checks(result)) == {"calibration_holds", "no_concept_drift"}


def test_what_was_expected_and_what_came_are_one_run_in_mlflow(world: World) -> None:
    from mlflow import MlflowClient

    world.run(FIRST, "batch_performance")
    told = world.newest("batch_performance", FIRST)
    run = MlflowClient(world.settings.tracking_uri).get_run(told["mlflow_run_id"])
    assert (run.data.tags["batch"], run.data.tags["kind"]) == (FIRST, "performance")
    assert run.data.metrics["auc"] == pytest.approx(told["auc"])
    foretold = run.data.metrics["expected_auc"]
    assert foretold - told["auc"] == pytest.approx(told["estimate_error_auc"])
    assert run.data.metrics["matured_share"] == pytest.approx(told["matured_share"])


def test_the_share_of_scored_encounters_with_known_outcomes_is_told(world: World) -> None:
    world.run(FIRST, "batch_performance")
    one, other = (len(world.frame("batch_predictions", key)) for key in (FIRST, SECOND))
    told = world.newest("batch_performance", FIRST)
    assert told["matured_share"] == pytest.approx(one / (one + other))
    world.run(SECOND, "performance_estimate")
    again = world.newest("performance_estimate", SECOND)
    assert again["matured_share"] == pytest.approx(one / (one + other))


def test_outcomes_meet_their_score_by_encounter_and_not_by_place(world: World) -> None:
    world.run(FIRST, "batch_performance")
    before = world.newest("batch_performance", FIRST)
    with world.changed(lambda frame: frame.sample(frac=1, random_state=1)):
        world.run(FIRST, "batch_performance")
    assert world.newest("batch_performance", FIRST)["auc"] == pytest.approx(before["auc"])


def test_those_on_whom_somebody_acted_are_left_out_of_figures_and_of_the_estimate(
    world: World,
) -> None:
    scores = world.frame("batch_predictions", FIRST)["probability"].to_numpy()
    acted_on = scores >= np.quantile(scores, 0.9)
    with world.changed(lambda frame: frame.assign(**{schema.INTERVENED: acted_on})):
        world.run(FIRST, "batch_performance")
        labels = world.frame("future_batch", FIRST)[schema.LABEL].to_numpy(dtype=float)
    told = world.newest("batch_performance", FIRST)
    rest = ~acted_on
    assert (told["n"], told["left_out"]) == (rest.sum(), acted_on.sum())
    assert told["expected_observed"] == pytest.approx(scores[rest].sum() / labels[rest].sum())
    error = scores[rest].mean() - labels[rest].mean()
    assert told["estimate_error_rate"] == pytest.approx(error)
    assert f"{acted_on.sum()} on whom somebody acted" in told["sentence"]
    assert told["dagster/row_count"] == len(scores)


def test_a_batch_with_one_outcome_only_is_told_and_alarms_nobody(world: World) -> None:
    with world.changed(lambda frame: frame.assign(**{schema.LABEL: 0})):
        result = world.run(FIRST, "batch_performance")
    told = world.newest("batch_performance", FIRST)
    assert told["sentence"].startswith("Not scored: ")
    assert not {"within_bounds", "auc", "estimate_error_auc"} & set(told)
    for check in checks(result).values():
        assert not check.passed, "what cannot be said is not called fine"
        assert check.severity is dg.AssetCheckSeverity.WARN
    wanted = [request.partition for request in matured_decision(world.instance, 0).requests]
    assert FIRST not in wanted, "it is not asked for for ever"


def test_outcomes_that_no_longer_follow_the_score_fail_the_check_in_words(world: World) -> None:
    scores = world.frame("batch_predictions", FIRST)["probability"].to_numpy()
    odds = np.exp(1.2) * scores / (1 - scores)
    labels = (np.random.default_rng(0).random(len(scores)) < odds / (1 + odds)).astype(int)
    with world.changed(lambda frame: frame.assign(**{schema.LABEL: labels})):
        result = world.run(FIRST, "batch_performance")
    check = checks(result)["no_concept_drift"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    words = str(check.metadata["sentence"].value)
    assert "the rate moved, more readmissions than the score says" in words
    assert not checks(result)["calibration_holds"].passed
    told = world.newest("batch_performance", FIRST)
    assert (told["within_bounds"], told["concept_drifted"]) == (False, True)
    assert words in told["sentence"]


def test_served_traffic_is_estimated_and_never_measured(world: World) -> None:
    key = served_key(1)
    for asset in ("future_batch", "batch_predictions"):
        frame = world.frame(asset, FIRST).drop(columns=schema.LABEL, errors="ignore")
        frame.to_parquet(world.path(asset, key), index=False)
    result = world.run(key, "performance_estimate", "batch_performance")
    made = {e.asset_key.to_user_string() for e in result.get_asset_materialization_events()}
    assert made == {"performance_estimate"}
    assert "served traffic, whose outcomes nobody reports" in log(world, result)
    expected = world.newest("performance_estimate", FIRST)["expected_auc"]
    assert world.newest("performance_estimate", key)["expected_auc"] == pytest.approx(expected)
