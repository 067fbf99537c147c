"""A fitted pipeline turned into the files that `scorer` serves from, and what those cost.

Only here are sklearn's fitted objects taken apart; nothing is fitted, and nothing that runs when it
is read is written: JSON, UBJ and plain arrays.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.recfunctions import repack_fields

from health_predict.schema import CLOSED, CODES, COUNTS, OPEN
from health_predict.scorer import DIGESTS, FACTS, NODES, TABLES, TREES, Scorer, ScorerError

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import Pipeline
    from xgboost import Booster

TIMED = 200
"""Encounters scored for the latency: their median then moves by about 1 % between two goes."""
WARM_UP = 20


@dataclass(frozen=True)
class Footprint:
    """What a compiled model costs where it serves.

    Attributes:
        bytes: size of the files.
        latency_ms: median time to score one encounter in process, milliseconds.
    """

    bytes: int
    latency_ms: float


def compile_pipeline(pipeline: "Pipeline", facts: Mapping[str, Any], folder: Path) -> None:
    """Writes the scorer of a fitted pipeline.

    Args:
        pipeline: as `models.pipeline` returns it, any family, any of its calibrations.
        facts: what the service tells of the model; JSON values only.
        folder: an empty or absent folder.

    Raises:
        ScorerError: family or calibration have no compiled form, or the folder holds something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):  # trees of another model would be loaded with this one's tables
        raise ScorerError(f"{folder} holds files already: give an empty folder")
    calibrated = pipeline.named_steps["classifier"].calibrated_classifiers_[0]
    classifier = calibrated.estimator.estimator  # inside FrozenEstimator
    tables = _encoding_tables(pipeline.named_steps["preprocess"])
    tables["calibration"] = _calibration_table(calibrated.calibrators[0])
    family = type(classifier).__name__
    if family == "LogisticRegression":
        tables["classifier"] = _linear_head(classifier, tables)
    elif family == "XGBClassifier":
        classifier.get_booster().save_model(folder / TREES)
        tables["classifier"] = {"kind": "boosted"}
    elif family == "RandomForestClassifier":
        tables["classifier"] = _write_forest(classifier, folder)
    else:
        raise _no_compiled_form(family)
    _write_json(folder / TABLES, tables)
    _write_json(folder / FACTS, facts)
    written = sorted(path for path in folder.iterdir() if path.name != DIGESTS)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    _write_json(folder / DIGESTS, digests)


def footprint(
    pipeline: "Pipeline", facts: Mapping[str, Any], encounters: Sequence[Mapping[str, Any]]
) -> Footprint:
    """Returns what the pipeline costs once compiled, measured on encounters scored one by one.

    Args:
        pipeline: as for `compile_pipeline`.
        facts: as for `compile_pipeline`.
        encounters: published column name -> value; taken in turn until `TIMED` were scored.

    Raises:
        ScorerError: as `compile_pipeline`.
        ValueError: there is no encounter.
    """
    if not encounters:
        raise ValueError("no encounter was given: the latency cannot be measured")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        compile_pipeline(pipeline, facts, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        scorer = Scorer.load(folder)
    seconds = []
    for turn in range(WARM_UP + TIMED):
        one = [encounters[turn % len(encounters)]]
        start = time.perf_counter()
        scorer.score(one)
        seconds.append(time.perf_counter() - start)
    return Footprint(size, 1000 * statistics.median(seconds[WARM_UP:]))


_ODD_CODES = (1, 7, 999)
_ODD_TEXTS = (
    *("?", "Never seen", "E999", "V00", "250.99", "nan", "inf", "1e400", "-7"),
    "x" * 80,
)


def stress_rows(encounters: "pd.DataFrame", n: int, seed: int = 0) -> "pd.DataFrame":
    """Returns n encounters to compare a scorer with its pipeline on: as they come, and worse.

    Where there are fewer than n, the rest are copies of them in which every value was drawn anew:
    counts at the ends of their ranges, missing texts, levels nobody has seen.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    common = encounters.head(n)
    odd = encounters.iloc[rng.integers(len(encounters), size=max(n - len(common), n // 10))].copy()
    choices: dict[str, Any] = {
        **COUNTS,
        **dict.fromkeys(CODES, _ODD_CODES),
        **dict.fromkeys(OPEN, _ODD_TEXTS),
        **CLOSED,
    }
    for column, levels in choices.items():
        odd[column] = rng.choice(levels, len(odd))
    return pd.concat([common.head(n - len(odd)), odd], ignore_index=True)


def _calibration_table(calibrator: Any) -> dict[str, Any]:
    method = type(calibrator).__name__
    if method == "_SigmoidCalibration":
        return {"sigmoid": [float(calibrator.a_), float(calibrator.b_)]}
    if method == "IsotonicRegression" and calibrator.out_of_bounds == "clip":
        scores, probabilities = calibrator.X_thresholds_, calibrator.y_thresholds_
        return {
            "isotonic": [scores.tolist(), probabilities.tolist()],
            "precision": scores.dtype.name,
        }
    raise _no_compiled_form(method)


def _no_compiled_form(part: str) -> ScorerError:
    return ScorerError(f"no compiled form of {part} is known: add one to compile_pipeline")


def _linear_head(classifier: Any, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns weights and the reference person, from whom contributions are counted.

    Standardised numbers are 0 on average; of each feature's levels everyone counts the same,
    because the encoder does not keep how common they were.
    """
    reference = [0.0] * len(tables["numeric"])
    for level in tables["levels"]:
        size = len(level["columns"]) + (level["rare"] is not None)
        reference += [1 / size] * size
    return {
        "kind": "linear",
        "weights": classifier.coef_[0].tolist(),
        "intercept": float(classifier.intercept_[0]),
        "reference": reference,
    }


def _encoding_tables(preprocessor: "Pipeline") -> dict[str, Any]:
    encode = preprocessor.named_steps["encode"]
    scaler, encoder = encode.named_transformers_["numeric"], encode.named_transformers_["levels"]
    numeric_names, level_names = (list(columns) for _, _, columns in encode.transformers_[:2])
    column = len(numeric_names)
    levels = []
    for name, categories, infrequent in zip(
        level_names, encoder.categories_, encoder.infrequent_categories_, strict=True
    ):
        pooled = set() if infrequent is None else set(_plain(infrequent))
        kept = [level for level in _plain(categories) if level not in pooled]
        rare = column + len(kept) if pooled else None
        levels.append(
            {
                "name": name,
                "levels": kept,
                "columns": list(range(column, column + len(kept))),
                "rare": rare,
            }
        )
        column += len(kept) + bool(pooled)
    numeric = list(zip(numeric_names, _plain(scaler.mean_), _plain(scaler.scale_), strict=True))
    return {"width": column, "numeric": numeric, "levels": levels}


def _plain(values: Iterable[Any]) -> list[Any]:
    return [value.item() if isinstance(value, np.generic) else value for value in values]


_NODE = np.dtype(
    [("left", "<i4"), ("feature", "<i4"), ("below", "<f4"), ("value", "<f8"), ("cover", "<f8")]
)


def _write_forest(forest: "RandomForestClassifier", folder: Path) -> dict[str, Any]:
    """Writes the forest twice: as flat nodes to score with, as XGBoost's trees to explain with."""
    trees = [_nodes(estimator.tree_) for estimator in forest.estimators_]
    sizes = [len(nodes) for nodes in trees]
    roots = np.cumsum(sizes) - sizes
    flat = np.concatenate(trees)
    flat["left"] += np.repeat(roots, sizes).astype(np.int32)
    np.save(folder / NODES, repack_fields(flat[["left", "feature", "below", "value"]]))
    _forest_as_booster(trees, forest.n_features_in_).save_model(folder / TREES)
    depth = max(estimator.tree_.max_depth for estimator in forest.estimators_)
    return {"kind": "forest", "roots": roots.tolist(), "depth": int(depth)}


def _nodes(tree: Any) -> np.ndarray:
    """Returns the nodes of a sklearn tree, children side by side; a leaf leads to itself.

    sklearn goes left where x <= t with x in single precision, XGBoost where x < t: the smallest
    single above t, taken as threshold, makes the two agree on every x.
    """
    order = _siblings_adjacent(tree)
    ids = np.arange(len(order))
    position = np.empty_like(order)
    position[order] = ids
    left, threshold = tree.children_left[order], tree.threshold[order]
    leaf = left < 0
    at_most = threshold.astype(np.float32)
    at_most = np.where(at_most > threshold, np.nextafter(at_most, np.float32(-np.inf)), at_most)
    nodes = np.zeros(len(order), _NODE)
    nodes["left"] = np.where(leaf, ids, position[left])
    nodes["feature"] = np.where(leaf, 0, tree.feature[order])
    nodes["below"] = np.where(leaf, np.inf, np.nextafter(at_most, np.float32(np.inf)))
    nodes["value"] = tree.value[order, 0, 1]
    nodes["cover"] = tree.weighted_n_node_samples[order]
    return nodes


def _forest_as_booster(trees: Sequence[np.ndarray], features: int) -> "Booster":
    """Returns the forest as an XGBoost model whose sum over trees is the forest's probability."""
    from xgboost import Booster, DMatrix, train

    skeleton = train(
        {"objective": "reg:squarederror", "base_score": 0.0, "max_depth": 1},
        DMatrix(np.zeros((2, features), np.float32), label=np.zeros(2)),
        num_boost_round=1,
    )
    model = json.loads(bytes(skeleton.save_raw("json")))
    gbtree = model["learner"]["gradient_booster"]["model"]
    gbtree["trees"] = [
        _tree_as_json(nodes, index, len(trees), features) for index, nodes in enumerate(trees)
    ]
    gbtree["tree_info"] = [0] * len(trees)
    gbtree["iteration_indptr"] = list(range(len(trees) + 1))
    gbtree["gbtree_model_param"]["num_trees"] = str(len(trees))
    booster = Booster(params={"nthread": 1})
    booster.load_model(bytearray(json.dumps(model).encode()))
    return booster


def _tree_as_json(nodes: np.ndarray, index: int, trees: int, features: int) -> dict[str, Any]:
    left = nodes["left"]
    leaf = left == np.arange(len(nodes))
    inner = np.flatnonzero(~leaf)
    value = nodes["value"] / trees
    parents = np.full(len(nodes), 2**31 - 1)
    parents[left[inner]] = parents[left[inner] + 1] = inner
    nothing = [0] * len(nodes)
    return {
        "id": index,
        "left_children": np.where(leaf, -1, left).tolist(),
        "right_children": np.where(leaf, -1, left + 1).tolist(),
        "parents": parents.tolist(),
        "split_indices": nodes["feature"].tolist(),
        "split_conditions": np.where(leaf, value, nodes["below"]).tolist(),
        "base_weights": value.tolist(),
        "sum_hessian": nodes["cover"].tolist(),
        "loss_changes": [0.0] * len(nodes),
        "default_left": nothing,
        "split_type": nothing,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": str(len(nodes)),
            "size_leaf_vector": "1",
        },
    }


def _siblings_adjacent(tree: Any) -> np.ndarray:
    """Returns sklearn's node ids in XGBoost's order: a right child follows its left sibling."""
    order = [0]
    for node in order:
        if tree.children_left[node] >= 0:
            order += [tree.children_left[node], tree.children_right[node]]
    return np.array(order)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
