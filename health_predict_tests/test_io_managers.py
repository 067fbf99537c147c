"""The store: what is written is read back equal, whole or not at all, and never a pickle."""

from dataclasses import dataclass

import dagster as dg
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from health_predict.defs.io_managers import StoreIOManager
from health_predict.defs.partitions import batches
from health_predict.store import Store


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


def test_frames_facts_and_fitted_objects_come_back_equal(store: Store) -> None:
    resources = {"io_manager": StoreIOManager(uri=store.uri)}
    assert dg.materialize([frame, facts, fitted, reader], resources=resources).success
    kept = store.keys()
    assert {"frame.parquet", "facts.json", "fitted.skops"} <= set(kept)
    assert not [key for key in kept if key.endswith((".pkl", ".pickle", ".partial"))]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_partitioned_asset_is_read_as_a_dict_whatever_the_number(
    store: Store, count: int
) -> None:
    resources = {"io_manager": StoreIOManager(uri=store.uri)}
    keys = [f"batch-{n:04d}" for n in range(1, count + 1)]
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("batches", keys)
        for key in keys:
            dg.materialize([part], instance=instance, resources=resources, partition_key=key)
        result = dg.materialize(
            [whole, part], selection=[whole], instance=instance, resources=resources
        )
        assert result.output_for_node("whole") == Facts("keys", dict.fromkeys(keys, 2.0), None)


def test_a_batch_that_was_announced_but_has_not_arrived_is_left_out(store: Store) -> None:
    resources = {"io_manager": StoreIOManager(uri=store.uri)}
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("batches", ["batch-0001", "batch-0002"])
        dg.materialize([part], instance=instance, resources=resources, partition_key="batch-0001")
        result = dg.materialize(
            [whole, part], selection=[whole], instance=instance, resources=resources
        )
        assert list(result.output_for_node("whole").values) == ["batch-0001"]


def test_a_write_that_fails_leaves_the_value_before_untouched(store: Store) -> None:
    @dg.asset(name="frame")
    def broken() -> pd.DataFrame:
        return pd.DataFrame({"mixed": ["text", 1]})  # no Parquet type holds both

    resources = {"io_manager": StoreIOManager(uri=store.uri)}
    dg.materialize([frame], resources=resources)
    before = store.read("frame.parquet")
    assert not dg.materialize([broken], resources=resources, raise_on_error=False).success
    assert store.read("frame.parquet") == before


def test_every_value_stands_under_a_readable_key(store: Store) -> None:
    resources = {"io_manager": StoreIOManager(uri=store.uri)}
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("batches", ["batch-0001"])
        dg.materialize([frame], instance=instance, resources=resources)
        dg.materialize([part], instance=instance, resources=resources, partition_key="batch-0001")
    assert store.keys() == ["frame.parquet", "part/batch-0001.parquet"]


def test_a_value_that_was_never_made_is_named(store: Store) -> None:
    resources = {"io_manager": StoreIOManager(uri=store.uri)}
    with pytest.raises(FileNotFoundError, match=r"materialise (facts|frame|fitted) first"):
        dg.materialize([reader, frame, facts, fitted], selection=[reader], resources=resources)
