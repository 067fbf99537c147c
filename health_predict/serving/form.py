"""The page at `GET /`: a form for one encounter, filled with what its reader has to know.

`form.html` beside this file is the page, self-contained; here the facts of the served model are
written into it, and its one JSON block is filled: fields, vocabularies and their descriptions, an
encounter to start from, what an estimate is shown against. Nothing is scored here, the page asks
`POST /predict?explain=true` like any client.

Sources of the words: `IDS_mapping.csv` for codes; Strack et al. 2014, table 1 for test results and
table 2 for groups of diagnoses; ICD-9-CM for the titles of diagnoses, shortened. Payer codes are
nowhere spelled out by the publishers, so they stay as they are.
"""

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from health_predict.schema import (
    ADMISSION_SOURCES,
    ADMISSION_TYPES,
    AGES,
    CODES,
    DEATH_OR_HOSPICE,
    DIAGNOSES,
    DISCHARGE_DISPOSITIONS,
    EXAMPLE,
    INPUTS,
    MEDICATIONS,
    MISSING,
    Encounter,
    field_name,
)

_TEMPLATE = Path(__file__).with_name("form.html")

Option = tuple[str, str]
"""A value and what it is called."""
Options = list[tuple[str, list[Option]]]
"""Options by group; the group without a name comes first."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Person": ("age", "gender", "race", "weight"),
    "Stay": (
        "admission_type_id",
        "admission_source_id",
        "time_in_hospital",
        "discharge_disposition_id",
        "medical_specialty",
        "payer_code",
    ),
    "History in the year before": ("number_inpatient", "number_emergency", "number_outpatient"),
    "Diagnoses": (*DIAGNOSES, "number_diagnoses"),
    "Tests and procedures": (
        "A1Cresult",
        "max_glu_serum",
        "num_lab_procedures",
        "num_procedures",
    ),
    "Medication": ("num_medications", "diabetesMed", "change", *MEDICATIONS),
}
"""The fields in the order they are asked for."""

DRUGS_SHOWN = ("insulin", "metformin")
"""Given in 53 % and 20 % of the published encounters; of the others none in more than 13 %."""

LABELS: dict[str, str] = {
    "age": "Age in years",
    "gender": "Sex",
    "race": "Race",
    "weight": "Weight",
    "admission_type_id": "Type of admission",
    "admission_source_id": "Admitted from",
    "time_in_hospital": "Length of stay",
    "discharge_disposition_id": "Discharged to",
    "medical_specialty": "Specialty",
    "payer_code": "Payer",
    "number_inpatient": "Inpatient stays",
    "number_emergency": "Emergency visits",
    "number_outpatient": "Outpatient visits",
    "diag_1": "Primary diagnosis",
    "diag_2": "Second diagnosis",
    "diag_3": "Third diagnosis",
    "number_diagnoses": "Diagnoses entered",
    "A1Cresult": "HbA1c",
    "max_glu_serum": "Serum glucose",
    "num_lab_procedures": "Laboratory tests",
    "num_procedures": "Other procedures",
    "num_medications": "All drugs given",
    "diabetesMed": "Diabetes drug given",
    "change": "Diabetes drugs changed",
    **{drug: drug.capitalize() for drug in MEDICATIONS},
}

UNITS = {
    "weight": "pounds",
    "time_in_hospital": "days",
    "num_lab_procedures": "tests",
    "num_procedures": "procedures",
    "num_medications": "drugs",
    "number_outpatient": "visits",
    "number_emergency": "visits",
    "number_inpatient": "stays",
    "number_diagnoses": "diagnoses",
}

_DOSAGES = {"No": "Not given", "Steady": "Steady", "Up": "Raised", "Down": "Lowered"}
_WORDS: dict[str, dict[str, str]] = {
    "gender": {"Unknown/Invalid": "Not known"},
    "age": {band: f"{10 * i} to {10 * i + 9}" for i, band in enumerate(AGES)},
    "max_glu_serum": {
        "None": "Not measured",
        "Norm": "Normal",
        ">200": "Above 200 mg/dl",
        ">300": "Above 300 mg/dl",
    },
    "A1Cresult": {
        "None": "Not measured",
        "Norm": "Normal, below 7 %",
        ">7": "Above 7 %, below 8 %",
        ">8": "Above 8 %",
    },
    "change": {"No": "Unchanged", "Ch": "Changed"},
    **dict.fromkeys(MEDICATIONS, _DOSAGES),
}
_CODE_TABLES = dict(
    zip(CODES, (ADMISSION_TYPES, DISCHARGE_DISPOSITIONS, ADMISSION_SOURCES), strict=True)
)
_WIDE = {*CODES, *DIAGNOSES, "medical_specialty"}
"""Fields whose values do not fit on half of a phone."""
_UNKNOWN = {"NULL", "Not Available", "Not Mapped", "Unknown/Invalid"}

_SUGGESTED: dict[str, tuple[str, ...]] = {
    "race": ("AfricanAmerican", "Asian", "Caucasian", "Hispanic", "Other"),
    "weight": (*(f"[{low}-{low + 25})" for low in range(0, 200, 25)), ">200"),
    "payer_code": (
        *("BC", "CH", "CM", "CP", "DM", "FR", "HM", "MC", "MD"),
        *("MP", "OG", "OT", "PO", "SI", "SP", "UN", "WC"),
    ),
    "medical_specialty": (
        "Cardiology",
        "Emergency/Trauma",
        "Endocrinology",
        "Family/GeneralPractice",
        "Gastroenterology",
        "Hematology/Oncology",
        "InternalMedicine",
        "Nephrology",
        "Neurology",
        "ObstetricsandGynecology",
        "Oncology",
        "Orthopedics",
        "Orthopedics-Reconstructive",
        "Otolaryngology",
        "Pediatrics",
        "Pediatrics-Endocrinology",
        "PhysicalMedicineandRehabilitation",
        "Podiatry",
        "Psychiatry",
        "Psychology",
        "Pulmonology",
        "Radiologist",
        "Surgery-Cardiovascular/Thoracic",
        "Surgery-General",
        "Surgery-Neuro",
        "Surgery-Thoracic",
        "Surgery-Vascular",
        "Urology",
    ),
}
"""Levels of open vocabularies, as published; of the specialties those of 100 encounters or more."""

TITLES: dict[str, str] = {
    "250": "Diabetes mellitus",
    "250.01": "Diabetes, type 1",
    "250.02": "Diabetes, type 2, uncontrolled",
    "250.03": "Diabetes, type 1, uncontrolled",
    "250.1": "Diabetes with ketoacidosis",
    "250.13": "Diabetes with ketoacidosis, type 1, uncontrolled",
    "250.4": "Diabetes with renal manifestations",
    "250.5": "Diabetes with ophthalmic manifestations",
    "250.6": "Diabetes with neurological manifestations",
    "250.7": "Diabetes with peripheral circulatory disorders",
    "250.8": "Diabetes with other specified manifestations",
    "38": "Septicaemia",
    "162": "Malignant neoplasm of trachea, bronchus and lung",
    "197": "Secondary neoplasm of respiratory and digestive systems",
    "244": "Acquired hypothyroidism",
    "272": "Disorders of lipoid metabolism",
    "276": "Disorders of fluid, electrolytes, acid-base balance",
    "278": "Overweight, obesity",
    "280": "Iron deficiency anaemia",
    "285": "Other and unspecified anaemias",
    "295": "Schizophrenic disorders",
    "296": "Episodic mood disorders",
    "305": "Nondependent abuse of drugs",
    "401": "Essential hypertension",
    "402": "Hypertensive heart disease",
    "403": "Hypertensive chronic kidney disease",
    "410": "Acute myocardial infarction",
    "411": "Other acute ischaemic heart disease",
    "413": "Angina pectoris",
    "414": "Other chronic ischaemic heart disease",
    "424": "Other diseases of endocardium",
    "425": "Cardiomyopathy",
    "426": "Conduction disorders",
    "427": "Cardiac dysrhythmias",
    "428": "Heart failure",
    "433": "Occlusion of precerebral arteries",
    "434": "Occlusion of cerebral arteries",
    "435": "Transient cerebral ischaemia",
    "440": "Atherosclerosis",
    "453": "Other venous embolism and thrombosis",
    "458": "Hypotension",
    "486": "Pneumonia, organism unspecified",
    "491": "Chronic bronchitis",
    "493": "Asthma",
    "496": "Chronic airway obstruction",
    "507": "Pneumonitis due to solids and liquids",
    "511": "Pleurisy",
    "518": "Other diseases of lung",
    "530": "Diseases of oesophagus",
    "535": "Gastritis and duodenitis",
    "560": "Intestinal obstruction",
    "562": "Diverticula of intestine",
    "571": "Chronic liver disease and cirrhosis",
    "574": "Cholelithiasis",
    "577": "Diseases of pancreas",
    "578": "Gastrointestinal haemorrhage",
    "584": "Acute kidney failure",
    "585": "Chronic kidney disease",
    "599": "Other disorders of urethra and urinary tract",
    "682": "Other cellulitis and abscess",
    "707": "Chronic ulcer of skin",
    "715": "Osteoarthrosis",
    "722": "Intervertebral disc disorders",
    "780": "General symptoms",
    "786": "Symptoms of respiratory system and chest",
    "789": "Symptoms of abdomen and pelvis",
    "820": "Fracture of neck of femur",
    "996": "Complications peculiar to certain procedures",
    "998": "Other complications of procedures",
    "V45": "Other postprocedural states",
    "V57": "Care involving rehabilitation procedures",
}
"""The commonest diagnoses, spelled as published: without leading zeros."""

CHAPTERS: tuple[tuple[int, int, str], ...] = (
    (250, 250, "Diabetes"),
    (390, 459, "Circulatory"),
    (785, 785, "Circulatory"),
    (460, 519, "Respiratory"),
    (786, 786, "Respiratory"),
    (520, 579, "Digestive"),
    (787, 787, "Digestive"),
    (800, 999, "Injury and poisoning"),
    (710, 739, "Musculoskeletal"),
    (580, 629, "Genitourinary"),
    (788, 788, "Genitourinary"),
    (140, 239, "Neoplasms"),
)
"""First and last category of a group of diagnoses, as the publishers group them."""

_COMPARED = ("version", "threshold", "threshold_reason", "risk_bands", "population")
"""The facts that an estimate is shown against."""

_TOLD = {
    "intended_use": "Intended use",
    "data": "Data",
    "window": "Learned from",
    "family": "Family",
    "name": "Name",
    "version": "Version",
    "run_id": "Run",
    "fingerprint": "Data fingerprint",
    "git_revision": "Code revision",
}
"""The facts that say which model it is; `/model-info` has all of them."""

_OUTCOMES = {"any": "any later readmission", "30d": "a readmission within 30 days"}


def page(facts: Mapping[str, Any]) -> bytes:
    """Returns the page for a model, UTF-8.

    Args:
        facts: of the served model, as `/model-info` tells them; whichever are missing, or all, are
            left out of the page.

    Raises:
        ValueError: a fact is no JSON value, NaN for example.
    """
    block = json.dumps(_content(facts), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    slots = {
        "outcome": html.escape(_outcome(facts)),
        "synthetic": "" if "synthetic" in str(facts.get("data", "")).lower() else " hidden",
        "cards": _cards(facts),
        "pairs": _pairs(facts),
        # Inside a script element only `<` can end it or change how it is read.
        "content": block.replace("<", "\\u003c"),
    }
    template = _TEMPLATE.read_text(encoding="utf-8")
    # In one pass: what stands in a fact is never taken for a slot.
    return re.sub(r"\{\{ (\w+) \}\}", lambda slot: slots[slot[1]], template).encode()


def csp(page: bytes) -> str:
    """Returns the Content-Security-Policy under which the page works: by hashes, nothing unsafe.

    The JSON block is data, which no policy has to allow.
    """
    text = page.decode()
    sources = {
        tag: " ".join(_digest(body) for body in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S))
        for tag in ("style", "script")
    }
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {sources['style']}",
            f"script-src {sources['script']}",
            "connect-src 'self'",
            "img-src data:",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        )
    )


def _digest(body: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"


def _content(facts: Mapping[str, Any]) -> dict[str, Any]:
    properties = Encounter.model_json_schema()["properties"]
    described = {field_name(name): about for name, about in properties.items()}
    return {
        "groups": list(GROUPS.items()),
        "fields": {c: _field(c, described[field_name(c)]) for c in INPUTS},
        "drugs": list(dict.fromkeys((*DRUGS_SHOWN, *MEDICATIONS))),
        "drugs_shown": DRUGS_SHOWN,
        "example": {c: None if v == MISSING else v for c, v in EXAMPLE.items()},
        "empty": dict.fromkeys(MEDICATIONS, "No"),
        "titles": TITLES,
        "chapters": CHAPTERS,
        "outcome": _outcome(facts),
        "facts": {name: facts[name] for name in _COMPARED if facts.get(name) is not None},
    }


def _outcome(facts: Mapping[str, Any]) -> str:
    return _OUTCOMES.get(facts.get("label", ""), "a readmission")


def _field(column: str, about: Mapping[str, Any]) -> dict[str, Any]:
    # The first clause says what it is; what follows tells programs how to write it.
    hint = about.get("description", "").partition(";")[0].rstrip(".")
    field = {"label": LABELS[column], "hint": hint, "wide": column in _WIDE}
    if column in _CODE_TABLES:
        return {**field, "kind": "code", "options": _codes(column)}
    if "enum" in about:
        words = _WORDS.get(column, {})
        options = [(value, words.get(value, value)) for value in about["enum"]]
        return {**field, "kind": "choice", "options": [("", options)]}
    if about.get("type") == "integer":
        limits = {"low": about["minimum"], "high": about["maximum"], "unit": UNITS[column]}
        return {**field, "kind": "count", **limits}
    if column in DIAGNOSES:
        return {**field, "kind": "text", "suggested": "titles"}
    unit = f", {UNITS[column]}" if column in UNITS else ""
    return {**field, "hint": hint + unit, "kind": "text", "suggested": _SUGGESTED[column]}


def _codes(column: str) -> Options:
    groups: dict[str, list[Option]] = {"": [], "Not known": [], "No readmission to predict": []}
    for code, words in _CODE_TABLES[column].items():
        group = "Not known" if words in _UNKNOWN else ""
        if column == "discharge_disposition_id" and code in DEATH_OR_HOSPICE:
            group = "No readmission to predict"
        groups[group].append((str(code), words))
    return [(name, options) for name, options in groups.items() if options]


def _cards(facts: Mapping[str, Any]) -> str:
    """Returns what the model is worth, in figures that say what they mean."""
    test = facts.get("test") or {}
    cards = []
    if (auc := test.get("auc")) is not None:
        pairs = f"in {100 * auc:.0f} of 100 pairs"
        words = f"Of two people of whom one is readmitted, that one gets the higher risk {pairs}."
        cards.append(_card(f"{auc:.3f}", "AUC" + _interval(test), words))
    if (ratio := test.get("expected_observed")) is not None:
        words = f"For every 100 readmissions that happened it expected {100 * ratio:.0f}."
        cards.append(_card(f"{ratio:.2f}", "Expected over observed", words))
    if (n := test.get("n")) is not None:
        led = f"; {test['positives']:,} of them led to a readmission" if "positives" in test else ""
        cards.append(_card(f"{n:,}", "encounters it was tested on", f"None was learned from{led}."))
    if (version := facts.get("version")) is not None:
        cards.append(_card(f"v{version}", "answers now", _trained(facts)))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(figure: str, title: str, words: str) -> str:
    figure, title, words = map(html.escape, (figure, title, words))
    return f'<div class="card"><b>{figure}</b>{title}<p class="soft small">{words}</p></div>'


def _interval(test: Mapping[str, Any]) -> str:
    low, high = test.get("auc_low"), test.get("auc_high")
    return "" if low is None or high is None else f", 95\u202f% interval {low:.3f} to {high:.3f}"


def _trained(facts: Mapping[str, Any]) -> str:
    words = "Trained"
    if at := facts.get("trained_at"):
        when = datetime.fromisoformat(at)
        words += f" on {when.day} {when:%B %Y}"
    if rows := facts.get("train_rows"):
        words += f" from {rows:,} encounters"
    return "" if words == "Trained" else f"{words}."


def _pairs(facts: Mapping[str, Any]) -> str:
    named = {words: facts.get(name) for name, words in _TOLD.items()}
    pairs = (
        f"<dt>{words}</dt><dd>{html.escape(str(value))}</dd>"
        for words, value in named.items()
        if value is not None
    )
    return f"<dl>{''.join(pairs)}</dl>"
