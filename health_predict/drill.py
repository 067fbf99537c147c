"""A release that is wrong on purpose, to see that what is wrong does not stay.

The pipeline that comes from here looks as the champion does and answers the opposite. Whether it is
rolled back is for the platform to show; nothing is released here.
"""

from copy import deepcopy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

SUFFIX = "-drill"
"""Ends the version of a drill: no model in the registry has such a one."""


def spoiled(pipeline: "Pipeline") -> "Pipeline":
    """Returns a copy of a fitted pipeline whose calibration is upside down: 1 - p for p.

    Raises:
        ValueError: its calibration is none that could be turned round.
    """
    wrong = deepcopy(pipeline)
    calibrated = wrong.named_steps["classifier"].calibrated_classifiers_[0]
    (calibrator,) = calibrated.calibrators
    if type(calibrator).__name__ == "_SigmoidCalibration":
        calibrator.a_, calibrator.b_ = -calibrator.a_, -calibrator.b_
    elif type(calibrator).__name__ == "IsotonicRegression":
        calibrator.y_thresholds_ = 1 - calibrator.y_thresholds_
    else:
        raise ValueError(f"a calibration by {type(calibrator).__name__} cannot be turned round")
    return wrong
