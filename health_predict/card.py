"""The card of a model version: what it is for, what it was made of, how good it is and for whom.

The items are those of TRIPOD+AI (Collins et al., BMJ 2024, e078378) and of model cards (Mitchell et
al., FAT* 2019). A card is filled from the facts registered with the version: nothing is measured
here, and an item nobody filled in is an error, not a blank.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from health_predict import card_words
from health_predict.card_words import TRIPOD_AI
from health_predict.schema import LABEL, OUTCOME, POSITIVE_OUTCOMES

EXPLAINED = 10
"""Features named in the explanation; the picture beside the card shows more."""

_INTERVALS = ("brier", "expected_observed", "slope", "net_benefit")
_TOO_FEW = "too few to say"


class CardError(ValueError):
    """A fact that the card needs is missing or empty."""


@dataclass(frozen=True)
class Performance:
    """What the model is worth on people it never saw.

    Attributes as in `evaluation.Scores`; `intervals` has the ends of the 95 % interval of those
    that have none beside them.
    """

    n: int
    positives: int
    auc: float
    auc_low: float
    auc_high: float
    brier: float
    expected_observed: float
    slope: float
    net_benefit: float
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Subgroup:
    """How the model fares on one group of the held-out people.

    Attributes:
        group: `gender: Female`.
        n: encounters.
        positives: readmissions among them.
        auc: AUC with its 95 % interval, or that there are too few people to say.
        expected_observed: expected over observed readmissions, likewise.
        words: how it compares.
    """

    group: str
    n: int
    positives: int
    auc: str
    expected_observed: str
    words: str


@dataclass(frozen=True)
class ModelCard:
    """One version of a model, told in full: no field is ever empty.

    Attributes:
        name: registered name.
        version: registered version.
        date: when it was trained, ISO 8601.
        family: model family.
        hyperparameters: as the search chose them.
        trigger: why it was trained.
        intended_use: what it is for.
        out_of_scope: what it is not for.
        data: caption of the source.
        synthetic: whether no row describes a real encounter.
        data_sha256: digest of the source.
        label: what is predicted, in words.
        window: encounters it learned from.
        fingerprint: digest of the training rows.
        train_rows: encounters learned from.
        predictors: feature -> its words.
        missing_data: how missing values are handled.
        performance: on held-out people, who are the test sample.
        subgroups: the same, group by group.
        calibration: how scores become probabilities.
        threshold: probability from which the prediction is 1.
        threshold_reason: why that one.
        risk_bands: band -> its lower end.
        explanation: the features that move the scores most, with their shares.
        verdict: what the gate said.
        git_revision: code it was trained with.
        run_id: MLflow run.
        dagster_run_id: Dagster run.
        limitations: what its figures do not show.
        feedback: whether rows whose care a prediction changed are marked, and how many are.
    """

    name: str
    version: str
    date: str
    family: str
    hyperparameters: dict[str, Any]
    trigger: str
    intended_use: str
    out_of_scope: list[str]
    data: str
    synthetic: bool
    data_sha256: str
    label: str
    window: str
    fingerprint: str
    train_rows: int
    predictors: dict[str, str]
    missing_data: str
    performance: Performance
    subgroups: list[Subgroup]
    calibration: str
    threshold: float
    threshold_reason: str
    risk_bands: dict[str, float]
    explanation: list[tuple[str, float]]
    verdict: str
    git_revision: str
    run_id: str
    dagster_run_id: str
    limitations: list[str]
    feedback: str


def card(facts: Mapping[str, Any]) -> ModelCard:
    """Returns the card of a model version.

    Args:
        facts: what was registered with the version.

    Raises:
        CardError: a fact is missing or empty (None, NaN, no text, no entry), or has no words.
    """
    data = _fact(facts, "data")
    synthetic = "synthetic" in data.lower()
    return ModelCard(
        name=_fact(facts, "name"),
        version=str(_fact(facts, "version")),
        date=_fact(facts, "trained_at"),
        family=_fact(facts, "family"),
        hyperparameters=dict(_fact(facts, "params")),
        trigger=_fact(facts, "trigger"),
        intended_use=_fact(facts, "intended_use"),
        out_of_scope=list(card_words.OUT_OF_SCOPE),
        data=data,
        synthetic=synthetic,
        data_sha256=_fact(facts, "data_sha256"),
        label=_label(facts),
        window=str(_fact(facts, "window")),
        fingerprint=_fact(facts, "fingerprint"),
        train_rows=_fact(facts, "train_rows"),
        predictors=_predictors(facts),
        missing_data=card_words.MISSING_DATA,
        performance=_performance(facts),
        subgroups=[_subgroup(facts, place) for place in range(len(_fact(facts, "groups")))],
        calibration=_worded(facts, "calibration", card_words.CALIBRATIONS),
        threshold=_fact(facts, "threshold"),
        threshold_reason=_fact(facts, "threshold_reason"),
        risk_bands=dict(_fact(facts, "risk_bands")),
        explanation=[(name, share) for name, share in _fact(facts, "importance")][:EXPLAINED],
        verdict=_fact(facts, "verdict"),
        git_revision=_fact(facts, "git_revision"),
        run_id=_fact(facts, "run_id"),
        dagster_run_id=_fact(facts, "dagster_run_id"),
        limitations=[
            card_words.DRAWN if synthetic else card_words.COLLECTED,
            *card_words.LIMITATIONS,
        ],
        feedback=_feedback(facts),
    )


def render(model: ModelCard) -> str:
    """Returns the card as Markdown; synthetic data is called so before anything else."""
    parts = [
        f"# Model card: {model.name}, version {model.version}",
        *([f"> {card_words.SYNTHETIC}"] if model.synthetic else []),
        _summary(model),
        *_use(model),
        *_model(model),
        *_data(model),
        *_results(model),
        *_caution(model),
    ]
    return "\n\n".join(parts) + "\n"


def _fact(facts: Mapping[str, Any], key: str) -> Any:
    """Returns the fact behind a key; a dot leads inside, a number to an entry of a list."""
    value: Any = facts
    for part in key.split("."):
        try:
            value = value[int(part) if part.isdecimal() else part]
        except (KeyError, IndexError, TypeError):
            raise CardError(
                f"the facts have no {key!r}: register it with the model, the card needs it"
            ) from None
    if _empty(value):
        raise CardError(f"the fact {key!r} is empty ({value!r}): a card has no blanks, fill it in")
    return value


def _empty(value: Any) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str | Sequence | Mapping) and not (
        value.strip() if isinstance(value, str) else value
    )


def _worded(facts: Mapping[str, Any], key: str, words: Mapping[str, str]) -> str:
    value = _fact(facts, key)
    if value not in words:
        raise CardError(f"the fact {key!r} is {value!r}: words are known for {', '.join(words)}")
    return words[value]


def _label(facts: Mapping[str, Any]) -> str:
    words = _worded(facts, "label", card_words.LABELS)
    outcomes = " or ".join(f"`{outcome}`" for outcome in sorted(POSITIVE_OUTCOMES[facts["label"]]))
    return f"{words} (`{LABEL}` is 1 where `{OUTCOME}` is {outcomes})"


def _predictors(facts: Mapping[str, Any]) -> dict[str, str]:
    predictors = {}
    for name in _fact(facts, "features"):
        words = card_words.feature(name)
        if words is None:
            raise CardError(f"the fact 'features' names {name!r}: say in card_words what it means")
        predictors[name] = words
    return predictors


def _performance(facts: Mapping[str, Any]) -> Performance:
    fields = [field for field in Performance.__dataclass_fields__ if field != "intervals"]
    ends = {
        measure: (_fact(facts, f"intervals.{measure}.0"), _fact(facts, f"intervals.{measure}.1"))
        for measure in _INTERVALS
    }
    return Performance(**{field: _fact(facts, f"test.{field}") for field in fields}, intervals=ends)


def _subgroup(facts: Mapping[str, Any], place: int) -> Subgroup:
    def of_group(key: str) -> Any:
        return _fact(facts, f"groups.{place}.{key}")

    auc = ratio = _TOO_FEW
    if facts["groups"][place].get("auc") is not None:
        auc = _interval(of_group("auc"), (of_group("auc_low"), of_group("auc_high")))
        ratio = f"{of_group('expected_observed'):.2f}"
    n, positives = of_group("n"), of_group("positives")
    return Subgroup(of_group("group"), n, positives, auc, ratio, of_group("words"))


def _feedback(facts: Mapping[str, Any]) -> str:
    if not _fact(facts, "feedback.marked"):
        return card_words.UNMARKED
    rows, left_out = _fact(facts, "feedback.rows"), _fact(facts, "feedback.left_out")
    return f"{left_out:,} of {rows:,} rows are marked, {card_words.MARKED}"


def _summary(model: ModelCard) -> str:
    p = model.performance
    return (
        f"Predicts {model.label} after a hospital stay with diabetes. AUC "
        f"{_interval(p.auc, (p.auc_low, p.auc_high))} on {p.n:,} held-out encounters of the "
        f"{model.data}.\n\n**The gate:** {model.verdict}\n\n{card_words.MADE}"
    )


def _use(model: ModelCard) -> list[str]:
    return [
        "## Use",
        f"**Intended:** {model.intended_use.rstrip('.')}.",
        "**Out of scope:**",
        _bullets(model.out_of_scope),
    ]


def _model(model: ModelCard) -> list[str]:
    return [
        "## Model",
        _table(
            ("Item", "Value"),
            [
                ("Version", f"{model.version}, trained {model.date}"),
                ("Trained because", model.trigger),
                ("Family", model.family),
                ("Hyperparameters", _pairs(model.hyperparameters)),
                ("Calibration", model.calibration),
                ("Threshold", f"{model.threshold:.4g}"),
                ("Risk bands", _bands(model.risk_bands)),
                ("Code", f"git revision `{model.git_revision}`"),
                ("MLflow run", f"`{model.run_id}`"),
                ("Dagster run", f"`{model.dagster_run_id}`"),
            ],
        ),
        f"**Why this threshold:** {model.threshold_reason}",
    ]


def _data(model: ModelCard) -> list[str]:
    p = model.performance
    return [
        "## Data",
        _table(
            ("Item", "Value"),
            [
                ("Source", f"{model.data}, sha256 `{model.data_sha256}`"),
                ("Outcome", model.label),
                ("Learned from", f"{model.train_rows:,} encounters; window: {model.window}"),
                ("Fingerprint of the training rows", f"`{model.fingerprint}`"),
                ("Judged on", f"{p.n:,} encounters, {p.positives:,} readmissions"),
            ],
        ),
        f"**Missing data:** {model.missing_data}",
        f"### Predictors ({len(model.predictors)})",
        _table(
            ("Feature", "Meaning"),
            [(f"`{name}`", words) for name, words in model.predictors.items()],
        ),
    ]


def _results(model: ModelCard) -> list[str]:
    p = model.performance
    return [
        "## Performance on held-out people",
        _table(
            ("Measure", "Value [95 % interval]", "How to read it"),
            [
                ("AUC", _interval(p.auc, (p.auc_low, p.auc_high)), "0.5 is chance, 1 perfect"),
                (
                    "Brier score",
                    _interval(p.brier, p.intervals["brier"], 4),
                    "mean squared error of the probability",
                ),
                (
                    f"Net benefit at {model.threshold:.4g}",
                    _interval(p.net_benefit, p.intervals["net_benefit"], 4),
                    "foreseen readmissions an encounter, less the cost of needless interventions",
                ),
            ],
        ),
        card_words.INTERVALS,
        "### Calibration",
        _table(
            ("Measure", "Value [95 % interval]", "How to read it"),
            [
                (
                    "Expected/observed",
                    _interval(p.expected_observed, p.intervals["expected_observed"], 2),
                    "1 is calibrated in the large; above 1 more is said than happens",
                ),
                (
                    "Slope",
                    _interval(p.slope, p.intervals["slope"], 2),
                    "1 is calibrated; below 1 the probabilities are too extreme",
                ),
            ],
        ),
        f"{model.calibration}. Fitted on the newest people of the validation side.",
        "### Subgroups",
        _table(
            ("Group", "Encounters", "Readmissions", "AUC", "Expected/observed", "In words"),
            [
                (s.group, f"{s.n:,}", f"{s.positives:,}", s.auc, s.expected_observed, s.words)
                for s in model.subgroups
            ],
        ),
        "### What moves the scores",
        _table(
            ("Feature", "Share of all movement"),
            [(f"`{name}`", f"{share:.1%}") for name, share in model.explanation],
        ),
    ]


def _caution(model: ModelCard) -> list[str]:
    return [
        "## Limitations",
        _bullets(model.limitations),
        "## Patients whose care the model changed",
        model.feedback,
        "## Where the items of TRIPOD+AI stand",
        _table(
            ("Item", "Here, or why not"),
            [(f"{number} {name}", words) for number, (name, words) in enumerate(TRIPOD_AI, 1)],
        ),
    ]


def _interval(point: float, ends: tuple[float, float], digits: int = 3) -> str:
    low, high = ends
    return f"{point:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"`{key}` {value:.4g}" if isinstance(value, float) else f"`{key}` {value}"
        for key, value in values.items()
    )


def _bands(bands: Mapping[str, float]) -> str:
    return ", ".join(f"{name} from {low:.4g}" for name, low in bands.items())


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in cells)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())  # a bar or a new line would end the cell
