"""The champion compiled for serving: encoding tables and a compact model, no pandas or sklearn.

`compile_pipeline` turns the one fitted `Pipeline` into a folder of JSON and UBJ; `Scorer` loads the
folder, digests checked, and scores encounters given as dicts. The two must agree with the pipeline
to 1e-6 on any row. How requests are read and answered is in `service`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from health_predict.features import derive_one

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import Pipeline
    from xgboost import Booster

TABLES = "tables.json"
TREES = "trees.ubj"
FACTS = "facts.json"
DIGESTS = "digests.json"


class ScorerError(RuntimeError):
    """The folder does not hold the scorer it says it holds."""


class Scorer:
    """Scores encounters as the champion's pipeline would.

    Attributes:
        facts: what is known of the model: version, run, data, metrics, threshold.
    """

    def __init__(
        self, tables: Mapping[str, Any], booster: "Booster | None", facts: Mapping[str, Any]
    ) -> None:
        self.facts = dict(facts)
        self._width: int = tables["width"]
        self._numbers: list[tuple[str, float, float]] = tables["numeric"]
        self._levels = [
            (
                level["name"],
                dict(zip(level["levels"], level["columns"], strict=True)),
                level["rare"],
            )
            for level in tables["levels"]
        ]
        self._classifier: Mapping[str, Any] = tables["classifier"]
        self._weights = np.asarray(self._classifier.get("weights", ()), dtype=np.float64)
        self._booster = booster

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Loads a compiled scorer.

        Raises:
            ScorerError: a file is missing or its digest differs from the one it was made with.
        """
        digests = _read_json(folder / DIGESTS)
        for name in {TABLES, FACTS} - digests.keys():
            raise ScorerError(f"the digests in {folder} lack {name}: build the Bento again")
        for name, expected in digests.items():
            if not (folder / name).is_file():
                raise ScorerError(f"the scorer in {folder} lacks {name}: build the Bento again")
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != expected:
                raise ScorerError(
                    f"{name} in {folder} has sha256 {found}, expected {expected}: "
                    "it was changed after it was built; build the Bento again"
                )
        booster = None
        if TREES in digests:
            from xgboost import Booster

            booster = Booster(params={"nthread": 1})
            booster.load_model(folder / TREES)
        return cls(_read_json(folder / TABLES), booster, _read_json(folder / FACTS))

    def score(self, encounters: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Returns the probability of readmission (n,) of encounters given by published column."""
        x = np.zeros((len(encounters), self._width))
        for row, encounter in zip(x, encounters, strict=True):
            self._encode(derive_one(encounter), row)
        return self._calibrated(self._raw(x))

    def unseen(self, encounter: Mapping[str, Any]) -> list[str]:
        """Returns the features whose level was rare or absent where the model learned."""
        derived = derive_one(encounter)
        return [name for name, columns, _ in self._levels if derived[name] not in columns]

    def _encode(self, derived: Mapping[str, Any], row: np.ndarray) -> None:
        for column, (name, mean, scale) in enumerate(self._numbers):
            row[column] = (derived[name] - mean) / scale
        for name, columns, rare in self._levels:
            column = columns.get(derived[name], rare)
            if column is not None:
                row[column] = 1.0

    def _raw(self, x: np.ndarray) -> np.ndarray:
        if self._booster is None:
            decision: np.ndarray = x @ self._weights + self._classifier["intercept"]
            return decision
        return self._booster.inplace_predict(x.astype(np.float32)).astype(np.float64)

    def _calibrated(self, raw: np.ndarray) -> np.ndarray:
        slope, intercept = self._classifier["calibration"]
        probability: np.ndarray = 1.0 / (1.0 + np.exp(slope * raw + intercept))
        return probability


def compile_pipeline(pipeline: "Pipeline", facts: Mapping[str, Any], folder: Path) -> None:
    """Writes the scorer of a fitted pipeline.

    Args:
        pipeline: as `models.pipeline` returns it, any family.
        facts: what the service tells of the model; JSON values only.
        folder: an empty or absent folder.

    Raises:
        ScorerError: the family has no compiled form, or the folder holds something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):  # trees of another model would be loaded with this one's tables
        raise ScorerError(f"{folder} holds files already: give an empty folder")
    calibrated = pipeline.named_steps["classifier"].calibrated_classifiers_[0]
    classifier = calibrated.estimator.estimator  # inside FrozenEstimator
    sigmoid = calibrated.calibrators[0]
    head: dict[str, Any] = {"calibration": [float(sigmoid.a_), float(sigmoid.b_)]}
    family = type(classifier).__name__
    if family == "LogisticRegression":
        head["weights"] = classifier.coef_[0].tolist()
        head["intercept"] = float(classifier.intercept_[0])
    elif family == "XGBClassifier":
        classifier.get_booster().save_model(folder / TREES)
    elif family == "RandomForestClassifier":
        _forest_as_booster(classifier).save_model(folder / TREES)
    else:
        raise ScorerError(f"no compiled form of {family} is known: add one to compile_pipeline")
    tables = {**_encoding_tables(pipeline.named_steps["preprocess"]), "classifier": head}
    _write_json(folder / TABLES, tables)
    _write_json(folder / FACTS, facts)
    written = sorted(path for path in folder.iterdir() if path.name != DIGESTS)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    _write_json(folder / DIGESTS, digests)


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


def _forest_as_booster(forest: "RandomForestClassifier") -> "Booster":
    """Returns the forest as an XGBoost model whose sum over trees is the forest's probability.

    sklearn goes left where x <= t with x in single precision, XGBoost where x < t: the smallest
    single above t, taken as threshold, makes the two agree on every x.
    """
    from xgboost import Booster, DMatrix, train

    features = forest.n_features_in_
    skeleton = train(
        {"objective": "reg:squarederror", "base_score": 0.0, "max_depth": 1},
        DMatrix(np.zeros((2, features), np.float32), label=np.zeros(2)),
        num_boost_round=1,
    )
    model = json.loads(bytes(skeleton.save_raw("json")))
    gbtree = model["learner"]["gradient_booster"]["model"]
    gbtree["trees"] = [
        _tree_as_json(estimator.tree_, index, len(forest.estimators_), features)
        for index, estimator in enumerate(forest.estimators_)
    ]
    gbtree["tree_info"] = [0] * len(forest.estimators_)
    gbtree["iteration_indptr"] = list(range(len(forest.estimators_) + 1))
    gbtree["gbtree_model_param"]["num_trees"] = str(len(forest.estimators_))
    booster = Booster(params={"nthread": 1})
    booster.load_model(bytearray(json.dumps(model).encode()))
    return booster


def _tree_as_json(tree: Any, index: int, trees: int, features: int) -> dict[str, Any]:
    order = _siblings_adjacent(tree)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    left, right = tree.children_left[order], tree.children_right[order]
    leaf = left < 0
    value = (tree.value[:, 0, 1] / tree.value[:, 0].sum(axis=1) / trees)[order]
    threshold = tree.threshold[order]
    at_most = threshold.astype(np.float32)
    at_most = np.where(at_most > threshold, np.nextafter(at_most, np.float32(-np.inf)), at_most)
    below = np.nextafter(at_most, np.float32(np.inf))
    parents = np.full(len(order), 2**31 - 1)
    parents[position[left[~leaf]]] = parents[position[right[~leaf]]] = np.flatnonzero(~leaf)
    nothing = [0] * len(order)
    return {
        "id": index,
        "left_children": np.where(leaf, -1, position[left]).tolist(),
        "right_children": np.where(leaf, -1, position[right]).tolist(),
        "parents": parents.tolist(),
        "split_indices": np.where(leaf, 0, tree.feature[order]).tolist(),
        "split_conditions": np.where(leaf, value, below).tolist(),
        "base_weights": value.tolist(),
        "sum_hessian": tree.weighted_n_node_samples[order].tolist(),
        "loss_changes": [0.0] * len(order),
        "default_left": nothing,
        "split_type": nothing,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": str(len(order)),
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


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ScorerError(f"no {path.name} in {path.parent}: build the Bento again")
    return json.loads(path.read_text())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
