"""The results as Markdown: the policies, their batches and decisions, the protocols of others.

What the figures are is in `results`, `policies` and `published`.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.policies import ALWAYS, GATED, NEVER, REFUSED
from benchmarks.published import TABLESHIFT_SIDES
from benchmarks.report import Run, table

_WORDS = {"auc": "AUC", "brier": "Brier score", "expected_observed": "expected/observed"}
_FAMILIES = {
    "logistic_regression": "logistic regression",
    "random_forest": "random forest",
    "xgboost": "XGBoost",
}


def blocks(result: dict[str, Any]) -> dict[str, str]:
    """Returns name -> Markdown; the names are those of the markers in `docs/results.md`."""
    each: dict[str, Callable[[dict[str, Any]], str]] = {
        "policies": policies,
        "saved": saved,
        "batches": batches,
        "decisions": decisions,
    }
    if result["rebuilt"]:
        each |= {"tableshift": tableshift, "cureus": cureus, "predecessor": predecessor}
    return {name: make(result) for name, make in each.items()}


def circumstances(result: dict[str, Any], run: Run) -> str:
    """Returns what the figures were made of, and when."""
    label = "any readmission" if result["label"] == "any" else "readmission within 30 days"
    return (
        f"{result['encounters']:,} {result['data']}, label {label}: {result['batches']} batches of "
        f"{result['batch_rows']:,}, the last one takes the rest. Seed {result['seed']}, table "
        f"sha256 `{result['sha256'][:12]}`, made {run.at[:10]} with Python "
        f"{run.machine['python']}, scikit-learn {run.machine['packages']['scikit-learn']}."
    )


def policies(result: dict[str, Any]) -> str:
    """Returns a line a policy: trainings, and means less those of training always."""
    head = (
        *("policy", "trainings", "AUC less always", "mean AUC", "Brier less always"),
        *("mean Brier", "mean abs(E/O - 1)"),
    )
    rows = [
        (
            *(name, row["trainings"]),
            "" if name == ALWAYS else _signed(row["auc_less_always"]),
            f"{row['mean_auc']:.4f}",
            "" if name == ALWAYS else _signed(row["brier_less_always"]),
            *(f"{row['mean_brier']:.4f}", f"{row['mean_miscalibration']:.3f}"),
        )
        for name, row in result["policies"].items()
    ]
    return table(head, rows)


def saved(result: dict[str, Any]) -> str:
    """Returns what drift gating saves and costs, in sentences."""
    told = result["policies"]
    sentences = []
    for name in (GATED, REFUSED):
        row = told[name]
        sentences.append(
            f"*{name}*: trained {row['trainings']} times in place of "
            f"{told[ALWAYS]['trainings']}, mean AUC "
            f"{_signed(row['auc_less_always'])} against always, "
            f"{row['mean_auc'] - told[NEVER]['mean_auc']:+.4f} against never."
        )
    off = "; ".join(f"{name} {row['mean_miscalibration']:.3f}" for name, row in told.items())
    sentences.append(f"Calibration, mean abs(E/O - 1): {off}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def batches(result: dict[str, Any]) -> str:
    """Returns a table a measure: a line a batch, a column a policy, intervals by patient."""
    told = result["policies"]
    first = next(iter(told.values()))["batches"]
    sections = []
    for measure in result["measures"]:
        rows = [
            (
                number,
                f"{row['n']:,.0f}",
                f"{row['rate']:.3f}",
                *(_interval(policy["batches"][number - 1], measure) for policy in told.values()),
            )
            for number, row in enumerate(first, start=1)
        ]
        sections += [
            f"**{_WORDS[measure]}**",
            table(("batch", "n", "rate", *told), rows, text=0),
        ]
    return "\n\n".join(sections)


def decisions(result: dict[str, Any]) -> str:
    """Returns what the loop decided after each batch, without and with the gate."""
    told = result["decisions"]
    head = ("batch", *(f"{column} ({name})" for name in told for column in ("drift", "decision")))
    pairs = zip(*told.values(), strict=True)
    rows = [
        (
            number,
            *(cell for one in pair for cell in (f"{one['statistic']:.3f}", _decision(one))),
        )
        for number, pair in enumerate(pairs, start=1)
    ]
    return table(head, rows, text=0)


def _decision(one: dict[str, Any]) -> str:
    if not one["trained"]:
        return f"v{one['scored_by']} stays"
    return "trained, takes over" if one["took_over"] else "trained, refused"


def tableshift(result: dict[str, Any]) -> str:
    """Returns accuracy on TableShift's two test sides, published and ours."""
    told = result["rebuilt"]["tableshift"]
    same = all(
        abs(told["majority"][side] - told["published"]["majority"][side]) < 1e-9
        for side in TABLESHIFT_SIDES
    )
    head = ("estimator", "accuracy, same world", "another world", "AUC, same world", "another")
    rows = [
        (f"{name}, published", *(f"{figures[side]:.4f}" for side in TABLESHIFT_SIDES), "", "")
        for name, figures in told["published"].items()
        if name != "majority"
    ]
    rows += [
        (
            f"{_FAMILIES[family]}, ours",
            *(_interval(figures[side], "accuracy", 4) for side in TABLESHIFT_SIDES),
            *(_interval(figures[side], "auc", 4) for side in TABLESHIFT_SIDES),
        )
        for family, figures in told["ours"].items()
    ]
    counted = told["rows"]
    said = (
        f"{counted['train']:,} rows to learn from, {counted['id_test']:,} of the same world and "
        f"{counted['ood_test']:,} of another to judge on. The rows are "
        f"{'the same' if same else 'not the same'}: the share of the commoner outcome is "
        f"{told['majority']['id_test']:.10f} and {told['majority']['ood_test']:.10f} here, and "
        "the published accuracy of estimators that predict nothing else "
        f"{told['published']['majority']['id_test']:.10f} and "
        f"{told['published']['majority']['ood_test']:.10f}."
    )
    return f"{table(head, rows)}\n\n{said}"


def cureus(result: dict[str, Any]) -> str:
    """Returns the AUC for readmission within 30 days, published and ours."""
    told = result["rebuilt"]["cureus"]
    rows = [
        (
            _FAMILIES[family],
            f"{told['published'][family]:.3f}",
            f"{ours['auc']:.3f} ({ours['auc_low']:.3f} to {ours['auc_high']:.3f})",
        )
        for family, ours in told["ours"].items()
    ]
    said = f"{told['rows']:,} encounters; ours is the mean (range) of {told['splits']} splits."
    return f"{table(('family', 'AUC published', 'AUC here'), rows)}\n\n{said}"


def predecessor(result: dict[str, Any]) -> str:
    """Returns the AUC under the predecessor's protocol, its and ours."""
    told = result["rebuilt"]["predecessor"]
    rows = [
        (side, f"{told['published'][side]:.4f}", _interval(ours, "auc", 4))
        for side, ours in told["ours"].items()
    ]
    return table(("rows", "AUC of the predecessor", "AUC here"), rows)


def _signed(difference: dict[str, float]) -> str:
    mean, low, high = (f"{difference[name]:+.4f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _interval(figures: dict[str, float], name: str, digits: int = 3) -> str:
    value, low, high = (
        f"{figures[key]:.{digits}f}" for key in (name, f"{name}_low", f"{name}_high")
    )
    return f"{value} [{low}, {high}]"
