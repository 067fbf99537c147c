"""Rows whose care a prediction changed are known, learned from by nobody, and told of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from health_predict import encounters, features, schema, splits
from health_predict.defs import data, training
from health_predict.defs.dossier import run_facts
from health_predict.defs.resources import EncounterSource, resources
from health_predict.schema import INTERVENED, Encounter
from health_predict.settings import Settings

ROWS = 2_000


def marked(raw: pd.DataFrame, every: int = 10) -> pd.DataFrame:
    """Returns the rows with the optional column, every so many marked."""
    marks = np.where(np.arange(len(raw)) % every == 0, "Yes", "No")
    return raw.assign(**{INTERVENED: marks})


def read(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    frame.to_csv(path, index=False)
    return encounters.read(str(path), rows=1, seed=0)[0]


# --- the table -----------------------------------------------------------------------------------


def test_a_table_may_have_the_column_anywhere(raw, tmp_path):
    few = marked(raw.iloc[:40])
    for columns in ([*few], [INTERVENED, *raw]):
        found = read(few[columns], tmp_path / "x.csv")
        pd.testing.assert_frame_equal(found, few)


def test_a_table_need_not_have_the_column(raw, tmp_path):
    assert INTERVENED not in read(raw.iloc[:40], tmp_path / "x.csv")


def test_a_mark_that_is_neither_yes_nor_no_is_quarantined_with_its_reason(raw):
    few = marked(raw.iloc[:40])
    few.loc[few.index[[4, 7]], INTERVENED] = ["perhaps", "yes"]
    accepted, quarantined = encounters.apply_contract(few)
    assert len(accepted) == 38
    assert sorted(quarantined[encounters.REASON]) == [
        "intervened: 'perhaps' is not one of No, Yes, empty",
        "intervened: 'yes' is not one of No, Yes, empty",
    ]


def test_an_empty_mark_counts_as_no(raw):
    few = marked(raw.iloc[:40])
    few.loc[few[INTERVENED] == "No", INTERVENED] = ""
    accepted, quarantined = encounters.apply_contract(few)
    cohort = encounters.cohort(accepted, "any")
    assert quarantined.empty
    assert cohort[INTERVENED].dtype == bool
    yes = set(few["encounter_id"][few[INTERVENED] == "Yes"].astype(int))
    assert set(cohort["encounter_id"][cohort[INTERVENED]]) == yes & set(cohort["encounter_id"])
    assert 0 < cohort[INTERVENED].sum() < len(cohort)


def test_without_the_column_nobody_is_marked(cohort):
    assert cohort[INTERVENED].dtype == bool
    assert not cohort[INTERVENED].any()


def test_what_is_learned_from_are_the_rows_that_nobody_marked(cohort):
    some = cohort.assign(**{INTERVENED: np.arange(len(cohort)) % 3 == 0})
    kept = encounters.untouched(some)
    pd.testing.assert_frame_equal(kept, some[np.arange(len(cohort)) % 3 != 0])


def test_rows_stored_before_the_field_was_known_count_as_unmarked(cohort):
    older = cohort.iloc[:100].drop(columns=INTERVENED)
    newer = cohort.iloc[100:200].assign(**{INTERVENED: np.arange(100) < 5})
    pd.testing.assert_frame_equal(encounters.untouched(older), older)
    assert len(encounters.untouched(pd.concat([older, newer]))) == 195


def test_no_model_and_no_request_knows_the_mark(encounter):
    assert INTERVENED not in schema.INPUTS
    assert INTERVENED not in (*features.MODELLED, *features.NUMERIC, *features.CATEGORICAL)
    request = {schema.field_name(column): value for column, value in encounter.items()}
    Encounter.model_validate(request)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Encounter.model_validate({**request, INTERVENED: "No"})


# --- the assets ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What the assets up to the snapshot left behind."""

    instance: dg.DagsterInstance
    resources: dict[str, Any]
    raw: pd.DataFrame

    def read(self, asset: str) -> pd.DataFrame:
        return pd.read_parquet(Path(self.resources["io_manager"].uri, f"{asset}.parquet"))

    def metadata(self, asset: str) -> dict[str, Any]:
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None and event.asset_materialization is not None
        return {k: v.value for k, v in event.asset_materialization.metadata.items()}

    def feedback(self) -> dict[str, Any]:
        """Returns what a model would be registered with."""

        @dg.asset
        def told(context: dg.AssetExecutionContext, source: EncounterSource) -> dict[str, Any]:
            facts: dict[str, Any] = run_facts(context, self.read("training_set"), source)[
                "feedback"
            ]
            return facts

        given = {"source": self.resources["source"], "io_manager": dg.mem_io_manager}
        result = dg.materialize([told], instance=self.instance, resources=given)
        facts: dict[str, Any] = result.output_for_node("told")
        return facts


def trained(raw: pd.DataFrame, folder: Path, instance: dg.DagsterInstance) -> Trained:
    """Materialises the snapshot of the initial rows and of one batch."""
    folder.mkdir(exist_ok=True)
    raw.to_csv(folder / "table.csv", index=False)
    settings = Settings(var=folder / "var", data=str(folder / "table.csv"), batches=4)
    needed = {"io_manager", "source", "arrival", "budget", "store"}
    given = {k: v for k, v in resources(settings).items() if k in needed}
    assets = [*data.ASSETS, training.training_set]
    run: dict[str, Any] = {"instance": instance, "resources": given}
    table = ["raw_encounters", "encounters", "quarantine", "initial", "future"]
    assert dg.materialize(assets, selection=table, **run).success
    instance.add_dynamic_partitions("batches", ["batch-0001"])
    batch = dg.materialize(assets, selection=["future_batch"], partition_key="batch-0001", **run)
    assert batch.success
    assert dg.materialize(assets, selection=["training_set"], **run).success
    return Trained(instance, given, raw)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


def test_marked_rows_are_left_out_of_every_side_of_the_snapshot(raw, tmp_path, instance):
    done = trained(marked(raw.iloc[:ROWS]), tmp_path / "t", instance)
    snapshot = done.read("training_set")
    yes = set(done.raw["encounter_id"][done.raw[INTERVENED] == "Yes"].astype(int))
    assert not yes & set(snapshot[schema.ENCOUNTER_ID])
    initial = done.read("initial")
    batch = done.read("future_batch/batch-0001")
    assert initial[INTERVENED].any() and batch[INTERVENED].any()
    known = pd.concat([initial, batch])
    left_out = int(known[INTERVENED].sum())
    assert set(snapshot[schema.ENCOUNTER_ID]) == set(known[schema.ENCOUNTER_ID]) - yes
    assert set(snapshot[schema.SIDE]) == set(splits.SIDES)
    assert INTERVENED not in snapshot
    told = done.metadata("training_set")
    assert (told["known_rows"], told["intervened_left_out"]) == (len(known), left_out)
    assert done.metadata("raw_encounters")["intervened_marked"] is True
    assert done.feedback() == {"marked": True, "rows": len(known), "left_out": left_out}


def test_a_source_without_the_field_is_known_to_have_none(raw, tmp_path, instance):
    done = trained(raw.iloc[:ROWS], tmp_path / "t", instance)
    assert done.metadata("raw_encounters")["intervened_marked"] is False
    known = len(done.read("training_set"))
    assert done.feedback() == {"marked": False, "rows": known, "left_out": 0}


def test_marks_move_no_other_row(raw, tmp_path):
    """A model learned beside marks differs by the marked rows and by nothing else."""
    snapshots = []
    for name, frame in (("plain", raw.iloc[:ROWS]), ("marked", marked(raw.iloc[:ROWS]))):
        with dg.instance_for_test() as instance:
            done = trained(frame, tmp_path / name, instance)
            snapshots.append(done.read("training_set").set_index(schema.ENCOUNTER_ID))
    plain, with_marks = snapshots
    assert len(with_marks) < len(plain)
    pd.testing.assert_frame_equal(plain.loc[with_marks.index], with_marks)
