"""The store: what is written is read back equal, whole or not at all, and never a pickle."""

from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from health_predict.defs.io_managers import StoreIOManager
from health_predict.defs.partitions import batches


@dataclass(frozen=True)
class Facts:
    """Something small that passes between assets."""

    name: str
    values: dict[str, float]
    nothing: str | None


FRAME = pd.DataFrame({"text": ["a", "?"], "number": [1, 2]})
FACTS = Facts("x", {"a": 0.1}, None)


@dg.asset
def frame() -> pd.DataFrame:
    return FRAME


@dg.asset
def facts() -> Facts:
    return FACTS


@dg.asset
def fitted() -> Pipeline:
    return Pipeline([("scale", StandardScaler())]).fit([[0.0], [2.0]])


@dg.asset
def reader(frame: pd.DataFrame, facts: Facts, fitted: Pipeline) -> None:
    pd.testing.assert_frame_equal(frame, FRAME)
    assert facts == FACTS
    assert fitted.transform([[1.0]])[0][0] == 0.0


@dg.asset(partitions_def=batches)
def part(context: dg.AssetExecutionContext) -> pd.DataFrame:
    return FRAME.assign(key=context.partition_key)


@dg.asset(ins={"part": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())})
def whole(part: dict[str, pd.DataFrame]) -> Facts:
    return Facts("keys", {key: float(len(value)) for key, value in part.items()}, None)


def test_frames_facts_and_fitted_objects_come_back_equal(tmp_path: Path) -> None:
    store = {"io_manager": StoreIOManager(root=str(tmp_path))}
    assert dg.materialize([frame, facts, fitted, reader], resources=store).success
    names = {p.name for p in tmp_path.iterdir()}
    assert {"frame.parquet", "facts.json", "fitted.skops"} <= names
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pkl", ".pickle", ".partial")]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_partitioned_asset_is_read_as_a_dict_whatever_the_number(
    tmp_path: Path, count: int
) -> None:
    store = {"io_manager": StoreIOManager(root=str(tmp_path))}
    keys = [f"batch-{n:04d}" for n in range(1, count + 1)]
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("batches", keys)
        for key in keys:
            dg.materialize([part], instance=instance, resources=store, partition_key=key)
        result = dg.materialize(
            [whole, part], selection=[whole], instance=instance, resources=store
        )
        assert result.output_for_node("whole") == Facts("keys", dict.fromkeys(keys, 2.0), None)


def test_a_batch_that_was_announced_but_has_not_arrived_is_left_out(tmp_path: Path) -> None:
    store = {"io_manager": StoreIOManager(root=str(tmp_path))}
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("batches", ["batch-0001", "batch-0002"])
        dg.materialize([part], instance=instance, resources=store, partition_key="batch-0001")
        result = dg.materialize(
            [whole, part], selection=[whole], instance=instance, resources=store
        )
        assert list(result.output_for_node("whole").values) == ["batch-0001"]


def test_a_write_that_fails_leaves_the_value_before_untouched(tmp_path: Path) -> None:
    @dg.asset(name="frame")
    def broken() -> pd.DataFrame:
        return pd.DataFrame({"mixed": ["text", 1]})  # no Parquet type holds both

    store = {"io_manager": StoreIOManager(root=str(tmp_path))}
    dg.materialize([frame], resources=store)
    before = (tmp_path / "frame.parquet").read_bytes()
    assert not dg.materialize([broken], resources=store, raise_on_error=False).success
    assert (tmp_path / "frame.parquet").read_bytes() == before


def test_a_value_that_was_never_made_is_named(tmp_path: Path) -> None:
    store = {"io_manager": StoreIOManager(root=str(tmp_path))}
    with pytest.raises(FileNotFoundError, match=r"materialise (facts|frame|fitted) first"):
        dg.materialize([reader, frame, facts, fitted], selection=[reader], resources=store)
