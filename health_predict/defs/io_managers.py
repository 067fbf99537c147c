"""One IO manager: frames as Parquet, facts as JSON, fitted objects as skops; never a pickle.

A value is kept in the store as `<asset>.<suffix>`, or `<asset>/<partition>.<suffix>`. It appears
whole or not at all. What is kept follows from the type an asset declares.
"""

import io
from functools import cached_property
from typing import Any, get_args, get_origin

import dagster as dg

from health_predict.store import Store, StoreMissing, open_store


class StoreIOManager(dg.ConfigurableIOManager):
    """Keeps what passes between assets in the store.

    A whole partitioned asset is read as a dict by partition key, whatever the number of its
    partitions, none included.
    """

    uri: str

    @cached_property
    def _store(self) -> Store:
        return open_store(self.uri)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Writes a value."""
        declared = context.dagster_type.typing_type
        key = _key(context, _partition(context), declared)
        self._store.write(key, _dumped(obj, declared))
        context.add_output_metadata({"path": dg.MetadataValue.path(self._store.where(key))})

    def load_input(self, context: dg.InputContext) -> Any:
        """Reads a value, or all partitions of one as a dict."""
        declared = context.dagster_type.typing_type
        if get_origin(declared) is not dict:
            return self._read(_key(context, _partition(context), declared), declared)
        kind = get_args(declared)[1]
        parts = context.asset_partition_keys if context.has_asset_partitions else []
        kept = set(self._store.keys("/".join(context.asset_key.path) + "/"))
        keys = {part: _key(context, part, kind) for part in parts}
        # A batch that was announced and has not arrived has no value yet.
        return {part: self._read(key, kind) for part, key in keys.items() if key in kept}

    def _read(self, key: str, declared: Any) -> Any:
        try:
            content = self._store.read(key)
        except StoreMissing as error:
            asset = key.partition("/")[0].partition(".")[0]
            raise StoreMissing(f"{error}: materialise {asset} first") from None
        return _loaded(content, declared)


def _partition(context: dg.InputContext | dg.OutputContext) -> str | None:
    return context.asset_partition_key if context.has_asset_partitions else None


def _key(context: dg.InputContext | dg.OutputContext, partition: str | None, declared: Any) -> str:
    parts = [*context.asset_key.path, *([partition] if partition else [])]
    return "/".join(parts) + _suffix(declared)


def _suffix(declared: Any) -> str:
    import pandas as pd
    from sklearn.base import BaseEstimator

    if declared is pd.DataFrame:
        return ".parquet"
    return ".skops" if issubclass(declared, BaseEstimator) else ".json"


def _dumped(obj: Any, declared: Any) -> bytes:
    suffix = _suffix(declared)
    if suffix == ".parquet":
        file = io.BytesIO()
        obj.to_parquet(file, index=False)
        return file.getvalue()
    if suffix == ".skops":
        import skops.io

        dumped: bytes = skops.io.dumps(obj)
        return dumped
    from pydantic import TypeAdapter

    return TypeAdapter(declared).dump_json(obj, indent=1)


def _loaded(content: bytes, declared: Any) -> Any:
    suffix = _suffix(declared)
    if suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(io.BytesIO(content))
    if suffix == ".skops":
        import skops.io

        from health_predict.experiments import TRUSTED_TYPES

        return skops.io.loads(content, trusted=TRUSTED_TYPES)
    from pydantic import TypeAdapter

    return TypeAdapter(declared).validate_json(content)
