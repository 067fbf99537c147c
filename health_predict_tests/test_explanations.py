"""Importance is measured between encounters, and the picture shows what was measured.

The picture is decoded again: that it is handsome is for eyes, that it is drawn from the
contributions is not.
"""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest

from health_predict import features, schema
from health_predict.explanations import global_importance, summary_picture
from health_predict.models import FAMILIES
from health_predict.scorer import Contributions, Scorer


@pytest.fixture(scope="module")
def some(cohort):
    return cohort.iloc[::40]


@pytest.fixture(scope="module")
def told(compiled, some) -> dict[str, Contributions]:
    """Each family's contributions of some encounters."""
    rows = some[list(schema.INPUTS)].to_dict("records")
    return {family: Scorer.load(compiled[family]).contributions(rows) for family in FAMILIES}


def pixels(picture: bytes) -> np.ndarray:
    """Returns the picture as (height, width, colours)."""
    from matplotlib.image import imread

    return imread(BytesIO(picture), format="png")


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_is_a_share_of_all_movement_largest_first(family, told):
    shares = global_importance(told[family])
    assert sorted(name for name, _ in shares) == sorted(told[family].names)
    values = [share for _, share in shares]
    assert sum(values) == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    assert values[-1] >= 0


@pytest.mark.parametrize("family", FAMILIES)
def test_who_was_an_inpatient_before_matters_to_every_family(family, told):
    leading = [name for name, _ in global_importance(told[family])[:3]]
    assert {"number_inpatient", "log_inpatient"} & set(leading)


def test_what_everyone_has_in_common_is_not_important(told):
    shifted = told["xgboost"].values.copy()
    shifted[:, 0] = 5.0
    shares = dict(global_importance(replace(told["xgboost"], values=shifted)))
    assert shares[told["xgboost"].names[0]] == pytest.approx(0)


def test_one_encounter_alone_has_no_importance(compiled, encounter):
    alone = Scorer.load(compiled["xgboost"]).contributions([encounter])
    with pytest.raises(ValueError, match="1 encounters do not differ"):
        global_importance(alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_picture_has_a_row_of_points_a_feature(family, told, some):
    values = features.derive(some)
    high, low = (
        pixels(summary_picture(told[family], values, title="t", caption="c", top=top))
        for top in (15, 5)
    )
    assert high.shape[0] > low.shape[0]
    assert high.shape[1] == low.shape[1]
    inside = low[low.shape[0] // 5 : -low.shape[0] // 4, low.shape[1] // 3 : -low.shape[1] // 5, :3]
    assert (np.ptp(inside, axis=2) > 0.2).any()  # numbers are coloured


def test_levels_are_grey_and_numbers_are_not(told, some):
    names = told["xgboost"].names
    pictures = {}
    for kept in ("number_inpatient", "admission_type_id"):
        only = told["xgboost"].values * [name == kept for name in names]
        picture = summary_picture(
            replace(told["xgboost"], values=only),
            features.derive(some),
            title="t",
            caption="c",
            top=1,
        )
        pictures[kept] = pixels(picture)[:, : -pixels(picture).shape[1] // 5, :3]
    colourful = {name: (np.ptp(p, axis=2) > 0.2).any() for name, p in pictures.items()}
    assert colourful == {"number_inpatient": True, "admission_type_id": False}


def test_the_same_contributions_give_the_same_picture(told, some):
    first, second = (
        summary_picture(told["random_forest"], features.derive(some), title="t", caption="c")
        for _ in range(2)
    )
    assert first == second


def test_title_and_caption_are_in_the_picture(told, some):
    plain, titled, captioned = (
        summary_picture(told["xgboost"], features.derive(some), title=title, caption=caption)
        for title, caption in [
            ("version 3", "published encounters"),
            ("version 4", "published encounters"),
            ("version 3", "synthetic cohort"),
        ]
    )
    assert len({plain, titled, captioned}) == 3


def test_values_of_other_encounters_are_refused(told, some):
    with pytest.raises(ValueError, match=r"has 3 values of \d+ encounters"):
        summary_picture(told["xgboost"], features.derive(some.iloc[:3]), title="t", caption="c")
