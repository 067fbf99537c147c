"""What every model card says, in words: scope, limitations, features, outcomes, calibrations.

Written for a reader at a bedside or in a review, and to be read through by one. No figure of any
version stands here: `card` adds those.
"""

from health_predict.features import DERIVED, RARE, UNNUMBERED
from health_predict.schema import INTERVENED, MEDICATIONS, MISSING, Encounter, field_name

SYNTHETIC = (
    "**Synthetic data.** No row describes a real encounter. The figures below show that the "
    "platform works; they say nothing about patients."
)
MADE = "Made by `health-predict card` from what was registered with the version."
OUT_OF_SCOPE = (
    "Diagnosis, or any decision taken without a clinician.",
    "Denying or rationing care: a low risk is no reason to withhold it.",
    "Encounters that end in death or hospice: the service refuses them.",
    "Patients without diabetes, and stays outside 1 to 14 days: none were learned from.",
    "What an intervention would change: the risk is that under the care that was usual.",
)
COLLECTED = (
    "The table was collected in 130 US hospitals from 1999 to 2008; care, coding and patients have "
    "changed since."
)
DRAWN = (
    "The cohort is drawn at random to resemble the published table; what was measured on it holds "
    "for no hospital."
)
LIMITATIONS = (
    "Judged on held-out people of the same source: no other hospital has validated it.",
    "Encounter order stands in for time; the table holds no dates.",
    "A readmission elsewhere and a death after discharge are not recorded: both count as no "
    "readmission.",
    "What a feature contributes is an association that was learned, not a cause.",
    "Of subgroups with too few people nothing is known, which does not mean that all is well.",
)
UNMARKED = (
    f"The source has no field `{INTERVENED}`: it does not say whose care was changed because of "
    "the model, so nobody is left out. Once answers are acted on, a readmission that was prevented "
    "counts as a false alarm, and a retrained model learns from outcomes that the model before it "
    "has influenced. Without such a mark a loss of calibration after go-live cannot be told from "
    "success."
)
MARKED = (
    f"left out of training and judging: the field `{INTERVENED}` says that a prediction changed "
    "their care, so their outcome is not what was to be foretold. What is left is told of patients "
    "under usual care only, and there are the fewer of high risk the more the model is acted on; a "
    "change of care that nobody marked still counts as usual."
)
MISSING_DATA = (
    f"Nothing is imputed. A missing text value (`{MISSING}`) is a level of its own; levels seen in "
    f"less than {RARE:.1%} of the rows, or never, are pooled where a pool was learned. A diagnosis "
    f"code that is no number (missing, E and V codes) is numbered {UNNUMBERED:g}. Counts are never "
    "missing: a row without one is quarantined, a request refused."
)
CALIBRATIONS = {
    "sigmoid": "Platt scaling (`sigmoid`): a logistic curve with two parameters",
    "isotonic": "isotonic regression (`isotonic`): the best-fitting curve that never falls",
}
INTERVALS = (
    "Held-out people are the newest encounters of the test side: patients whom neither the search, "
    "the fit nor the calibration has seen. Intervals are resampled by patient."
)
LABELS = {"any": "any later readmission", "30d": "a readmission within 30 days"}

TRIPOD_AI = (
    ("Title", "The first lines: a prediction model, its outcome and its population."),
    ("Abstract", "The paragraphs before *Use*."),
    (
        "Background",
        "*Use*: for whom and for what. Of inequalities the source tells race, gender and age: "
        "*Subgroups*.",
    ),
    ("Objectives", "Developed and evaluated, on patients of the same source."),
    ("Data", "*Data*. The source holds no dates; which years it is from: *Limitations*."),
    (
        "Participants",
        "Stays of 1 to 14 days with diabetes, in hospital; not those that end in death or "
        "hospice. Drugs given are among the fields.",
    ),
    ("Data preparation", "A written contract, broken rows in quarantine; *Missing data*."),
    (
        "Outcome",
        "*Data*. As the hospitals recorded it, without knowledge of a score; but see *Patients "
        "whose care the model changed*.",
    ),
    ("Predictors", "*Predictors*, as recorded at discharge; chosen as `docs/models.md` tells."),
    (
        "Sample size",
        "All there is, within the bounds of `docs/change-control.md`; intervals tell what it is "
        "good for.",
    ),
    ("Missing data", "*Missing data*."),
    (
        "Analytical methods",
        "`docs/models.md`: sides by patient, search, refit, calibration, threshold. The source "
        "names no hospital: how much they differ cannot be told.",
    ),
    ("Class imbalance", "Nothing is done about it: probabilities would not mean what they say."),
    (
        "Fairness",
        "No group of race, gender or age may be worse off beyond doubt; race is no predictor.",
    ),
    ("Model output", "A probability, a risk band, and 1 or 0 at the threshold: *Model*."),
    (
        "Training versus evaluation",
        "Same source and rules; people judged on are other patients, and the newest.",
    ),
    ("Ethical approval", "None was sought: published data without names, or nobody's."),
    (
        "Open science",
        "Code under Apache-2.0; the published data are open (CC BY 4.0); the protocol is "
        "`docs/change-control.md`. Not registered; no funding and no interests are declared.",
    ),
    ("Patient and public involvement", "None."),
    (
        "Results: participants",
        "How many and how many readmitted: *Data*. How they differ: `make eda`, and the "
        "quarantine's table in Dagit.",
    ),
    ("Results: model development", "*Data*: learned from, judged on."),
    (
        "Results: model specification",
        "*Model*, *Predictors*; the fitted object is in the MLflow run, its digest in the "
        "registry.",
    ),
    ("Results: model performance", "*Performance*, *Calibration*, *Subgroups*, with intervals."),
    (
        "Results: model updating",
        "*Trained because* under *Model*; what may change by itself: `docs/change-control.md`.",
    ),
    ("Interpretation", "The gate's sentence at the top; *What moves the scores*."),
    ("Limitations", "*Limitations*."),
    (
        "Usability",
        "What is missing or new is scored by rule and named in a warning; what breaks the contract "
        "is refused. What is still to be done: `docs/future.md`.",
    ),
)
"""The 27 items of TRIPOD+AI (Collins et al. 2024), each with where the card tells it."""

_FEATURES = {
    "gender": "Sex as recorded.",
    "age_years": "Age: the middle of its ten-year band, years.",
    "diag_1_block": "Primary diagnosis: ICD-9 code up to the point.",
    "diag_1_number": "Primary diagnosis: ICD-9 code as a number.",
    "diag_2_number": "Secondary diagnosis: ICD-9 code as a number.",
    "diag_3_number": "Additional secondary diagnosis: ICD-9 code as a number.",
    "medications_changed": "Diabetes drugs raised or lowered during the stay, count.",
    "medications_taken": "Diabetes drugs given, count.",
    "missing_fields": "Fields that were not recorded, count.",
    "log_inpatient": "Inpatient stays, year before, log(1 + n).",
    "log_emergency": "Emergency visits, year before, log(1 + n).",
    "log_outpatient": "Outpatient visits, year before, log(1 + n).",
    **dict.fromkeys(MEDICATIONS, "Dosage of the drug: not given, steady, raised or lowered."),
}


def feature(name: str) -> str | None:
    """Returns what a feature means, None if neither the schema nor `features` knows it."""
    if name in _FEATURES:
        return _FEATURES[name]
    field = Encounter.model_fields.get(field_name(name))
    if field is not None and field.description:
        # The codes themselves, thirty of a field, would be a page of their own.
        return field.description.split(": ")[0].rstrip(".") + "."
    return f"Made from {', '.join(DERIVED[name].columns)}." if name in DERIVED else None
