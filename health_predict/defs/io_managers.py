"""One IO manager: frames as Parquet, facts as JSON, fitted objects as skops; never a pickle.

A value is kept at `<root>/<asset>.<suffix>`, or `<root>/<asset>/<partition>.<suffix>`. It appears
whole or not at all. What is kept follows from the type an asset declares.
"""

import os
from pathlib import Path
from typing import Any, get_args, get_origin

import dagster as dg


class StoreIOManager(dg.ConfigurableIOManager):
    """Keeps what passes between assets in one folder.

    A whole partitioned asset is read as a dict by partition key, whatever the number of its
    partitions, none included.
    """

    root: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Writes a value atomically."""
        declared = context.dagster_type.typing_type
        path = self._path(context, _suffix(declared))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        _write(obj, declared, partial)
        partial.replace(path)
        context.add_output_metadata({"path": dg.MetadataValue.path(str(path))})

    def load_input(self, context: dg.InputContext) -> Any:
        """Reads a value, or all partitions of one as a dict."""
        declared = context.dagster_type.typing_type
        if get_origin(declared) is dict:
            kind = get_args(declared)[1]
            keys = context.asset_partition_keys if context.has_asset_partitions else []
            paths = {key: self._at(context, key, _suffix(kind)) for key in keys}
            # A batch that was announced and has not arrived has no file yet.
            return {key: _read(path, kind) for key, path in paths.items() if path.exists()}
        return _read(self._path(context, _suffix(declared)), declared)

    def _path(self, context: dg.InputContext | dg.OutputContext, suffix: str) -> Path:
        key = context.asset_partition_key if context.has_asset_partitions else None
        return self._at(context, key, suffix)

    def _at(
        self, context: dg.InputContext | dg.OutputContext, key: str | None, suffix: str
    ) -> Path:
        stem = Path(self.root, *context.asset_key.path)
        return (stem / key if key else stem).with_suffix(suffix)


def _suffix(declared: Any) -> str:
    import pandas as pd
    from sklearn.base import BaseEstimator

    if declared is pd.DataFrame:
        return ".parquet"
    return ".skops" if issubclass(declared, BaseEstimator) else ".json"


def _write(obj: Any, declared: Any, path: Path) -> None:
    suffix = _suffix(declared)
    if suffix == ".parquet":
        obj.to_parquet(path, index=False)
    elif suffix == ".skops":
        import skops.io

        skops.io.dump(obj, path)
    else:
        from pydantic import TypeAdapter

        path.write_bytes(TypeAdapter(declared).dump_json(obj, indent=1))


def _read(path: Path, declared: Any) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: materialise {path.stem} first")
    suffix = _suffix(declared)
    if suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path)
    if suffix == ".skops":
        import skops.io

        from health_predict.experiments import TRUSTED_TYPES

        return skops.io.load(path, trusted=TRUSTED_TYPES)
    from pydantic import TypeAdapter

    return TypeAdapter(declared).validate_json(path.read_bytes())
