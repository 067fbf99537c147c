"""The published encounter table in names: columns, vocabularies, code tables, label, input model.

Everything that has a name in the "Diabetes 130-US hospitals" data set (UCI 296) is named here once:
training, drift and the service all read it from here. No data is read and no rule is applied in
this module; `encounters` applies them to tables, `service` to single requests.

Source of the tables: `IDS_mapping.csv` of the published archive (CC BY 4.0) and Strack et al.,
BioMed Research International 2014, article 781670, table 1.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MISSING = "?"
"""How the published table writes a missing value. It is kept as a level of its own."""

ENCOUNTER_ID = "encounter_id"
PATIENT = "patient_nbr"
IDENTIFIERS = (ENCOUNTER_ID, PATIENT)
OUTCOME = "readmitted"
LABEL = "label"
INTERVENED = "intervened"
"""Optional 51st column of a source: whether a prediction changed the care of that encounter. Its
outcome is then not what was foretold, so nothing is learned from it and nothing judged on it."""
SIDE = "side"
POSITION = "position"
"""Place of a row among all rows of its source in order of arrival, from 0."""

MEDICATIONS = (
    "metformin",
    "repaglinide",
    "nateglinide",
    "chlorpropamide",
    "glimepiride",
    "acetohexamide",
    "glipizide",
    "glyburide",
    "tolbutamide",
    "pioglitazone",
    "rosiglitazone",
    "acarbose",
    "miglitol",
    "troglitazone",
    "tolazamide",
    "examide",
    "citoglipton",
    "insulin",
    "glyburide-metformin",
    "glipizide-metformin",
    "glimepiride-pioglitazone",
    "metformin-rosiglitazone",
    "metformin-pioglitazone",
)
DIAGNOSES = ("diag_1", "diag_2", "diag_3")
CODES = ("admission_type_id", "discharge_disposition_id", "admission_source_id")

COUNTS: dict[str, tuple[int, int]] = {
    "time_in_hospital": (1, 14),
    "num_lab_procedures": (0, 1000),
    "num_procedures": (0, 100),
    "num_medications": (0, 500),
    "number_outpatient": (0, 1000),
    "number_emergency": (0, 1000),
    "number_inpatient": (0, 1000),
    "number_diagnoses": (1, 100),
}
"""Counted columns and the closed range a row must lie in. The stay is 1 to 14 days by the
published inclusion rule; the other upper ends only catch values no encounter can have."""

AGES = tuple(f"[{low}-{low + 10})" for low in range(0, 100, 10))
GENDERS = ("Female", "Male", "Unknown/Invalid")
DOSAGES = ("No", "Steady", "Up", "Down")
GLUCOSE_LEVELS = ("None", "Norm", ">200", ">300")
A1C_LEVELS = ("None", "Norm", ">7", ">8")
CHANGES = ("No", "Ch")
YES_NO = ("No", "Yes")
OUTCOMES = ("NO", ">30", "<30")
MARKS = ("No", "Yes", "")
"""What `intervened` may hold; empty stands for `No`."""

CLOSED: dict[str, tuple[str, ...]] = {
    "gender": GENDERS,
    "age": AGES,
    "max_glu_serum": GLUCOSE_LEVELS,
    "A1Cresult": A1C_LEVELS,
    **dict.fromkeys(MEDICATIONS, DOSAGES),
    "change": CHANGES,
    "diabetesMed": YES_NO,
}
"""Vocabularies the world does not add to: a value outside is an error."""

OPEN = ("race", "weight", "payer_code", "medical_specialty", *DIAGNOSES)
"""Text columns the world adds to: an unseen value is scored by the pipeline's rule for it."""

COLUMNS = (
    ENCOUNTER_ID,
    PATIENT,
    "race",
    "gender",
    "age",
    "weight",
    *CODES,
    "time_in_hospital",
    "payer_code",
    "medical_specialty",
    "num_lab_procedures",
    "num_procedures",
    "num_medications",
    "number_outpatient",
    "number_emergency",
    "number_inpatient",
    *DIAGNOSES,
    "number_diagnoses",
    "max_glu_serum",
    "A1Cresult",
    *MEDICATIONS,
    "change",
    "diabetesMed",
    OUTCOME,
)
"""The 50 published columns in their published order."""

INPUTS = tuple(c for c in COLUMNS if c not in (*IDENTIFIERS, OUTCOME))
"""The 47 columns that describe an encounter: what a request holds."""

ADMISSION_TYPES = {
    1: "Emergency",
    2: "Urgent",
    3: "Elective",
    4: "Newborn",
    5: "Not Available",
    6: "NULL",
    7: "Trauma Center",
    8: "Not Mapped",
}
DISCHARGE_DISPOSITIONS = {
    1: "Discharged to home",
    2: "Discharged/transferred to another short term hospital",
    3: "Discharged/transferred to SNF",
    4: "Discharged/transferred to ICF",
    5: "Discharged/transferred to another type of inpatient care institution",
    6: "Discharged/transferred to home with home health service",
    7: "Left AMA",
    8: "Discharged/transferred to home under care of Home IV provider",
    9: "Admitted as an inpatient to this hospital",
    10: "Neonate discharged to another hospital for neonatal aftercare",
    11: "Expired",
    12: "Still patient or expected to return for outpatient services",
    13: "Hospice / home",
    14: "Hospice / medical facility",
    15: "Discharged/transferred within this institution to Medicare approved swing bed",
    16: "Discharged/transferred/referred another institution for outpatient services",
    17: "Discharged/transferred/referred to this institution for outpatient services",
    18: "NULL",
    19: "Expired at home. Medicaid only, hospice.",
    20: "Expired in a medical facility. Medicaid only, hospice.",
    21: "Expired, place unknown. Medicaid only, hospice.",
    22: "Discharged/transferred to another rehab fac including rehab units of a hospital.",
    23: "Discharged/transferred to a long term care hospital.",
    24: "Discharged/transferred to a nursing facility certified under Medicaid only",
    25: "Not Mapped",
    26: "Unknown/Invalid",
    27: "Discharged/transferred to a federal health care facility.",
    28: "Discharged/transferred/referred to a psychiatric hospital",
    29: "Discharged/transferred to a Critical Access Hospital (CAH).",
    30: "Discharged/transferred to another Type of Health Care Institution",
}
ADMISSION_SOURCES = {
    1: "Physician Referral",
    2: "Clinic Referral",
    3: "HMO Referral",
    4: "Transfer from a hospital",
    5: "Transfer from a Skilled Nursing Facility (SNF)",
    6: "Transfer from another health care facility",
    7: "Emergency Room",
    8: "Court/Law Enforcement",
    9: "Not Available",
    10: "Transfer from critical access hospital",
    11: "Normal Delivery",
    12: "Premature Delivery",
    13: "Sick Baby",
    14: "Extramural Birth",
    15: "Not Available",
    17: "NULL",
    18: "Transfer From Another Home Health Agency",
    19: "Readmission to Same Home Health Agency",
    20: "Not Mapped",
    21: "Unknown/Invalid",
    22: "Transfer from hospital inpatient/same facility, separate claim",
    23: "Born inside this hospital",
    24: "Born outside this hospital",
    25: "Transfer from Ambulatory Surgery Center",
    26: "Transfer from Hospice",
}
EMERGENCY_ROOM = 7
DEATH_OR_HOSPICE = frozenset({11, 13, 14, 19, 20, 21})
"""Discharges after which a readmission cannot happen or is not meant to: outside the cohort."""

LabelName = Literal["any", "30d"]
POSITIVE_OUTCOMES: dict[str, frozenset[str]] = {
    "any": frozenset({"<30", ">30"}),
    "30d": frozenset({"<30"}),
}
"""The label, defined once: which published outcomes count as a readmission."""


EXAMPLE: dict[str, Any] = {
    **{
        "race": "Caucasian",
        "gender": "Female",
        "age": "[70-80)",
        "weight": MISSING,
        "admission_type_id": 1,
        "discharge_disposition_id": 1,
        "admission_source_id": EMERGENCY_ROOM,
        "time_in_hospital": 5,
        "payer_code": "MC",
        "medical_specialty": "InternalMedicine",
        "num_lab_procedures": 44,
        "num_procedures": 1,
        "num_medications": 15,
        "number_outpatient": 0,
        "number_emergency": 1,
        "number_inpatient": 2,
        "diag_1": "428",
        "diag_2": "250.01",
        "diag_3": "401",
        "number_diagnoses": 9,
        "max_glu_serum": "None",
        "A1Cresult": ">8",
    },
    **dict.fromkeys(MEDICATIONS, "No"),
    "insulin": "Up",
    "change": "Ch",
    "diabetesMed": "Yes",
}
"""An encounter as it is sent: made up, nobody's."""


def field_name(column: str) -> str:
    """Returns a published column name as a Python identifier (`-` becomes `_`)."""
    return column.replace("-", "_")


def _missing_as_level(value: Any) -> Any:
    return MISSING if value is None or value == "" else value


Text = Annotated[
    str,
    BeforeValidator(_missing_as_level),
    Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$"),
]
Code = Annotated[int, Field(ge=1, le=999)]
Gender = Literal["Female", "Male", "Unknown/Invalid"]
Age = Literal[
    "[0-10)",
    "[10-20)",
    "[20-30)",
    "[30-40)",
    "[40-50)",
    "[50-60)",
    "[60-70)",
    "[70-80)",
    "[80-90)",
    "[90-100)",
]
Dosage = Annotated[
    Literal["No", "Steady", "Up", "Down"],
    Field(description="Dose of the drug in the stay; No if not given, Up or Down if changed."),
]
GlucoseLevel = Literal["None", "Norm", ">200", ">300"]
A1cLevel = Literal["None", "Norm", ">7", ">8"]


def _code(description: str, table: dict[int, str]) -> Any:
    codes = "; ".join(f"{code} {words}" for code, words in table.items())
    return Field(description=f"{description}; code of the published table: {codes}.")


def _count(column: str, description: str) -> Any:
    low, high = COUNTS[column]
    return Field(ge=low, le=high, description=description)


class Encounter(BaseModel):
    """One encounter as a client sends it: the 47 published inputs, and nothing else.

    Fields are spelled as published; a hyphen may be written as an underscore. A missing text value
    is `null` or `"?"`. A description says what a field is, and after a semicolon how it is given.
    Unknown fields are refused, which is also what keeps identifiers out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    race: Text = Field(description="Race as recorded; open vocabulary, null if missing.")
    gender: Gender = Field(description="Gender as recorded.")
    age: Age = Field(description="Age band; ten years.")
    weight: Text = Field(
        default=MISSING, description="Weight band; pounds, such as [75-100), mostly null."
    )
    admission_type_id: Code = _code("Admission type", ADMISSION_TYPES)
    discharge_disposition_id: Code = _code("Where the patient went", DISCHARGE_DISPOSITIONS)
    admission_source_id: Code = _code("Where the patient came from", ADMISSION_SOURCES)
    time_in_hospital: int = _count("time_in_hospital", "Length of stay; days.")
    payer_code: Text = Field(description="Payer code; open vocabulary, null if missing.")
    medical_specialty: Text = Field(
        description="Specialty of the admitting physician; open vocabulary, null if missing."
    )
    num_lab_procedures: int = _count("num_lab_procedures", "Laboratory tests in the stay; count.")
    num_procedures: int = _count("num_procedures", "Other procedures in the stay; count.")
    num_medications: int = _count("num_medications", "Distinct drugs given in the stay; count.")
    number_outpatient: int = _count(
        "number_outpatient", "Outpatient visits in the year before; count."
    )
    number_emergency: int = _count(
        "number_emergency", "Emergency visits in the year before; count."
    )
    number_inpatient: int = _count("number_inpatient", "Inpatient stays in the year before; count.")
    diag_1: Text = Field(
        description="Primary diagnosis; ICD-9 code such as 250.01, null if missing."
    )
    diag_2: Text = Field(
        description="Secondary diagnosis; ICD-9 code such as 250.01, null if missing."
    )
    diag_3: Text = Field(description="Third diagnosis; ICD-9 code such as 250.01, null if missing.")
    number_diagnoses: int = _count("number_diagnoses", "Diagnoses entered in the system; count.")
    max_glu_serum: GlucoseLevel = Field(
        description="Serum glucose test, mg/dl; None if not measured."
    )
    A1Cresult: A1cLevel = Field(description="HbA1c test, %; None if not measured.")
    metformin: Dosage
    repaglinide: Dosage
    nateglinide: Dosage
    chlorpropamide: Dosage
    glimepiride: Dosage
    acetohexamide: Dosage
    glipizide: Dosage
    glyburide: Dosage
    tolbutamide: Dosage
    pioglitazone: Dosage
    rosiglitazone: Dosage
    acarbose: Dosage
    miglitol: Dosage
    troglitazone: Dosage
    tolazamide: Dosage
    examide: Dosage
    citoglipton: Dosage
    insulin: Dosage
    glyburide_metformin: Dosage
    glipizide_metformin: Dosage
    glimepiride_pioglitazone: Dosage
    metformin_rosiglitazone: Dosage
    metformin_pioglitazone: Dosage
    change: Literal["No", "Ch"] = Field(description="Diabetes drugs changed; No, or Ch if any was.")
    diabetesMed: Literal["No", "Yes"] = Field(description="Diabetes drugs given; Yes if any was.")

    def columns(self) -> dict[str, Any]:
        """Returns the encounter by published column name, in published order."""
        fields = self.__dict__  # one look-up instead of 47: it is on the path of every request
        return {column: fields[name] for column, name in _SPELLED}


_SPELLED = [(column, field_name(column)) for column in INPUTS]
