"""What the loop may change by itself: `change_control.yaml`, read and held against a challenger.

After the predetermined change control plans of the FDA (2024): families, hyperparameters, features,
data window and footprint may move within written bounds, anything else takes a person. How well a
challenger does is not asked here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

FILE = Path(__file__).with_name("change_control.yaml")

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Design:
    """What a challenger is made of.

    Attributes:
        label: `any` or `30d`.
        family: model family.
        params: its hyperparameters.
        calibration: `sigmoid` or `isotonic`.
        features: the features it reads.
        train_rows: encounters it learned from.
        threshold: probability from which `prediction` is 1.
        bytes: size of the compiled scorer.
        latency_ms: median milliseconds for one encounter.
    """

    label: str
    family: str
    params: dict[str, float | int]
    calibration: str
    features: Sequence[str]
    train_rows: int
    threshold: float
    bytes: int
    latency_ms: float


class ChangeControl(BaseModel):
    """The written bounds; see the comments of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: list[str]
    families: dict[str, dict[str, Bounds]]
    calibration: list[str]
    features: list[str]
    train_rows: Bounds
    threshold: Bounds
    bytes: Bounds
    latency_ms: Bounds

    def breaches(self, design: Design) -> list[str]:
        """Returns what about a challenger only a person may change, in words; empty if nothing."""
        return [
            *self._unlisted("label", design.label, self.label),
            *self._unlisted("family", design.family, list(self.families)),
            *self._params(design),
            *self._unlisted("calibration", design.calibration, self.calibration),
            *(f"feature {f} is not listed" for f in design.features if f not in self.features),
            *_outside("encounters to learn from", design.train_rows, self.train_rows),
            *_outside("threshold", design.threshold, self.threshold),
            *_outside("size in bytes", design.bytes, self.bytes),
            *_outside("milliseconds for one encounter", design.latency_ms, self.latency_ms),
        ]

    def _params(self, design: Design) -> list[str]:
        listed = self.families.get(design.family, {})
        return [
            words
            for name, value in design.params.items()
            for words in (
                _outside(f"{design.family} {name}", value, listed[name])
                if name in listed
                else self._unlisted(f"{design.family} hyperparameter", name, list(listed))
            )
        ]

    @staticmethod
    def _unlisted(what: str, value: str, listed: Sequence[str]) -> list[str]:
        return [] if value in listed else [f"{what} {value} is not one of {', '.join(listed)}"]


def _outside(what: str, value: float, bounds: Bounds) -> list[str]:
    low, high = bounds
    # A bound that is drawn itself may come back from its logarithm a rounding error beyond.
    slack = 1e-9 * abs(high)
    if low - slack <= value <= high + slack:
        return []
    return [f"{what} {value:g} is outside {low:g} to {high:g}"]


@cache
def change_control() -> ChangeControl:
    """Returns the bounds as written.

    Raises:
        pydantic.ValidationError: the file names something unknown or lacks something.
    """
    import yaml

    return ChangeControl.model_validate(yaml.safe_load(FILE.read_text()))
