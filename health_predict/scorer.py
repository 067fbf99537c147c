"""The champion as the service scores with it: encoding tables and a compact model.

`compiling` writes the folder; here it is loaded, digests checked, and encounters given as dicts are
scored and explained without pandas or sklearn. The score must agree with the pipeline's to 1e-6 on
any row. An isotonic calibration has steps so steep that a difference in the last bits of single
precision would show: the raw score is therefore the pipeline's, bit by bit for trees. How requests
are read and answered is in `service`.
"""

import ctypes
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from health_predict.features import derive_one

if TYPE_CHECKING:
    from xgboost import Booster

TABLES = "tables.json"
TREES = "trees.ubj"
NODES = "nodes.npy"
FACTS = "facts.json"
DIGESTS = "digests.json"

Unit = Literal["log-odds", "probability"]
Head = Mapping[str, Any]


class ScorerError(RuntimeError):
    """The folder does not hold the scorer it says it holds."""


@dataclass(frozen=True)
class Contributions:
    """What each feature adds to the score before calibration: `base` and a row add up to it.

    Attributes:
        names: the features (k,), numbers first; the columns of a one-hot group are one feature.
        values: (n, k) contributions, in `unit`.
        base: score they are counted from, in `unit`.
        unit: log-odds, or probability for a forest, which adds probabilities up.
    """

    names: list[str]
    values: np.ndarray
    base: float
    unit: Unit

    def centred(self) -> "Contributions":
        """Returns them counted from the mean of these encounters, adding up to the same scores.

        For a linear model these are the Shapley values with these encounters as the background.
        """
        means = self.values.mean(axis=0)
        return replace(self, values=self.values - means, base=self.base + float(means.sum()))


class Scorer:
    """Scores encounters as the champion's pipeline would.

    Attributes:
        facts: what is known of the model: version, run, data, metrics, threshold.
    """

    def __init__(
        self, tables: Mapping[str, Any], model: "_Model", facts: Mapping[str, Any]
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
        self._calibration: Mapping[str, Any] = tables["calibration"]
        self._model = model

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Loads a compiled scorer.

        Raises:
            ScorerError: a file is missing or its digest differs from the one it was made with.
        """
        digests = _read_json(folder / DIGESTS)
        _require(digests, {TABLES, FACTS}, folder)
        for name, expected in digests.items():
            if not (folder / name).is_file():
                raise ScorerError(f"the scorer in {folder} lacks {name}: build the Bento again")
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != expected:
                raise ScorerError(
                    f"{name} in {folder} has sha256 {found}, expected {expected}: "
                    "it was changed after it was built; build the Bento again"
                )
        tables = _read_json(folder / TABLES)
        model = _MODELS[tables["classifier"]["kind"]]
        _require(digests, model.files, folder)
        return cls(tables, model(tables["classifier"], folder), _read_json(folder / FACTS))

    def score(self, encounters: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Returns the probability of readmission (n,) of encounters given by published column."""
        return self.scored(encounters)[0]

    def scored(self, encounters: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, list[list[str]]]:
        """Returns the probabilities (n,), and of each encounter the features it is unusual in.

        Unusual is a level that was rare or absent where the model learned.
        """
        x, unseen = self._encoded(encounters)
        return self._calibrated(self._model.raw(x)), unseen

    def contributions(self, encounters: Sequence[Mapping[str, Any]]) -> Contributions:
        """Returns what each feature adds to the score of each encounter before calibration.

        Exact for every family. Trees: Lundberg et al. 2020, "From local explanations to global
        understanding with explainable AI for trees", with the people each node was grown on as
        background; every level is a player, a feature the sum of its levels. Logistic regression:
        weight times distance from a reference person who is average in every number and of each
        feature an equal part of every level; how common a level is the pipeline does not keep.
        `centred` counts from actual people instead.

        Takes about 2 ms an encounter for 400 boosted trees and 50 ms for 128 deep ones of a
        forest: give a sample of a cohort.

        Raises:
            ValueError: there is no encounter.
        """
        if not encounters:
            raise ValueError("no encounter was given: there is nothing to explain")
        added, base = self._model.contributions(self._encoded(encounters)[0])
        sizes = [1] * len(self._numbers)
        sizes += [len(columns) + (rare is not None) for _, columns, rare in self._levels]
        starts = np.cumsum(sizes, dtype=np.intp) - sizes
        names = [name for name, *_ in self._numbers] + [name for name, *_ in self._levels]
        values = np.add.reduceat(added, starts, axis=1)
        return Contributions(names, values, base, self._model.unit)

    def _encoded(
        self, encounters: Sequence[Mapping[str, Any]]
    ) -> tuple[np.ndarray, list[list[str]]]:
        x = np.zeros((len(encounters), self._width))
        unseen = [
            self._encode(derive_one(encounter), row)
            for row, encounter in zip(x, encounters, strict=True)
        ]
        return x, unseen

    def _encode(self, derived: Mapping[str, Any], row: np.ndarray) -> list[str]:
        for column, (name, mean, scale) in enumerate(self._numbers):
            row[column] = (derived[name] - mean) / scale
        unseen: list[str] = []
        for name, columns, rare in self._levels:
            place = columns.get(derived[name])
            if place is None:
                unseen.append(name)
                place = rare
            if place is not None:
                row[place] = 1.0
        return unseen

    def _calibrated(self, raw: np.ndarray) -> np.ndarray:
        if "sigmoid" in self._calibration:
            slope, intercept = self._calibration["sigmoid"]
            probability: np.ndarray = 1.0 / (1.0 + np.exp(slope * raw + intercept))
            return probability
        # sklearn rounds the score to the precision it was calibrated in: a step notices.
        rounded = raw.astype(self._calibration["precision"]).astype(np.float64)
        return np.interp(rounded, *self._calibration["isotonic"])


class _Model(Protocol):
    """A compiled classifier: raw score (n,) of encoded rows (n, width), and what it is made of."""

    files: ClassVar[set[str]]
    unit: ClassVar[Unit]

    def __init__(self, head: Head, folder: Path) -> None: ...

    def raw(self, x: np.ndarray) -> np.ndarray: ...

    def contributions(self, x: np.ndarray) -> tuple[np.ndarray, float]: ...


class _Linear:
    files: ClassVar[set[str]] = set()
    unit: ClassVar[Unit] = "log-odds"

    def __init__(self, head: Head, folder: Path) -> None:
        self._weights = np.asarray(head["weights"], dtype=np.float64)
        self._reference = np.asarray(head["reference"], dtype=np.float64)
        self._intercept: float = head["intercept"]

    def raw(self, x: np.ndarray) -> np.ndarray:
        decision: np.ndarray = x @ self._weights + self._intercept
        return decision

    def contributions(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        base = float(self._reference @ self._weights) + self._intercept
        return (x - self._reference) * self._weights, base


class _Boosted:
    files: ClassVar[set[str]] = {TREES}
    unit: ClassVar[Unit] = "log-odds"

    def __init__(self, head: Head, folder: Path) -> None:
        self._booster = _booster(folder)
        self._predict = _predict_from_dense(self._booster)

    def raw(self, x: np.ndarray) -> np.ndarray:
        # A probability in single precision: what the pipeline's calibration is given.
        return self._predict(x.astype(np.float32)).astype(np.float64)

    def contributions(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        return _tree_contributions(self._booster, x)


class _Forest:
    """Walks all trees at once: bit-equal to sklearn and faster than XGBoost on one row.

    XGBoost adds up in single precision, which is near enough for `contributions` only.
    """

    files: ClassVar[set[str]] = {TREES, NODES}
    unit: ClassVar[Unit] = "probability"

    def __init__(self, head: Head, folder: Path) -> None:
        nodes = np.load(folder / NODES, allow_pickle=False)
        self._left = nodes["left"].astype(np.intp)
        self._feature = nodes["feature"].astype(np.intp)
        self._below, self._value = nodes["below"].copy(), nodes["value"].copy()
        self._roots = np.asarray(head["roots"], dtype=np.intp)
        self._depth: int = head["depth"]
        self._booster = _booster(folder)

    def raw(self, x: np.ndarray) -> np.ndarray:
        return np.array([self._probability(row) for row in x.astype(np.float32)])

    def contributions(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        return _tree_contributions(self._booster, x)

    def _probability(self, row: np.ndarray) -> float:
        node = self._roots
        for _ in range(self._depth):  # a leaf leads to itself
            right = row.take(self._feature.take(node)) >= self._below.take(node)
            node = self._left.take(node) + right
        # One after another, as sklearn adds them: `sum` adds in pairs and rounds otherwise.
        return float(np.add.accumulate(self._value.take(node))[-1]) / len(node)


_MODELS: dict[str, type[_Model]] = {"linear": _Linear, "boosted": _Boosted, "forest": _Forest}


def _booster(folder: Path) -> "Booster":
    from xgboost import Booster

    booster = Booster(params={"nthread": 1})
    booster.load_model(folder / TREES)
    return booster


_PREDICT = json.dumps(
    {
        **{"type": 0, "training": False, "iteration_begin": 0, "iteration_end": 0},
        **{"missing": float("nan"), "strict_shape": False},
    }
).encode()


def _predict_from_dense(booster: "Booster") -> Callable[[np.ndarray], np.ndarray]:
    """Returns `booster.inplace_predict` without its checks, which take longer than 400 trees.

    It is the same function of XGBoost's C interface: (n, width) single precision in C order ->
    (n,) single precision, the same bits.
    """
    from xgboost.libpath import find_lib_path

    library = ctypes.CDLL(find_lib_path()[0])
    predict, handle = library.XGBoosterPredictFromDense, booster.handle
    library.XGBGetLastError.restype = ctypes.c_char_p

    def call(rows: np.ndarray) -> np.ndarray:
        # An array by address: XGBoost reads it before the call returns.
        array = (
            f'{{"data":[{rows.ctypes.data},false],"shape":[{rows.shape[0]},{rows.shape[1]}],'
            '"strides":null,"typestr":"<f4","version":3}'
        ).encode()
        shape, dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        result = ctypes.POINTER(ctypes.c_float)()
        out = (ctypes.byref(shape), ctypes.byref(dimensions), ctypes.byref(result))
        if predict(handle, array, _PREDICT, None, *out):
            raise ScorerError(library.XGBGetLastError().decode(errors="replace"))
        return np.array(result[: len(rows)], dtype=np.float32)

    return call


def _tree_contributions(booster: "Booster", x: np.ndarray) -> tuple[np.ndarray, float]:
    from xgboost import DMatrix

    rows = DMatrix(x.astype(np.float32), nthread=1)
    added = booster.predict(rows, pred_contribs=True).astype(np.float64)
    return added[:, :-1], float(added[0, -1])


def _require(digests: Mapping[str, str], names: set[str], folder: Path) -> None:
    for name in sorted(names - digests.keys()):
        raise ScorerError(f"the digests in {folder} lack {name}: build the Bento again")


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ScorerError(f"no {path.name} in {path.parent}: build the Bento again")
    return json.loads(path.read_text())
