# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The data as they are, and a baseline
#
# Before a platform keeps a model fresh, somebody has to look at what the model is made of. This
# page is that look: what a row is, what is not recorded, what moves, who comes back, how an
# evaluation of these data fools its author, and how far the plainest model gets. It is computed
# with the functions that the platform itself runs on (`encounters`, `splits`, `features`,
# `fitting`, `metrics`), so that what is said of the data holds for what is trained.

# %% tags=["hide-input"]
"""The encounters looked at, and a baseline judged: an essay with its computations.

`make eda` makes a page of it. Nothing here is imported by the package; what is found is stated
again, and enforced, in `encounters`, `splits` and `fitting`.
"""

import textwrap

import numpy as np
import pandas as pd
from sklearn.neighbors import KNeighborsClassifier

from health_predict import card_words, encounters, features, fitting, metrics, schema, splits
from health_predict.evaluation import CALIBRATION_BOUNDS, CEILING_AUC
from health_predict.gate import GROUPS
from health_predict.models import FAMILIES, Candidate, Estimator, Sample, fit
from health_predict.settings import Settings
from health_predict.subgroups import SMALLEST_GROUP
from notebooks.drawing import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    RED,
    Gallery,
    Measured,
    band,
    bars,
    difference,
    figures,
    legend,
    measured,
    percent,
    say,
    share,
    table,
    words,
)

# %% [markdown]
# ## What a row is
#
# One row is one stay in a hospital of somebody with diabetes: 1 to 14 days, with laboratory tests
# and drugs given. It tells the patient by a number, how the stay began and ended, what was
# diagnosed and given, how often the patient had been seen in the year before, and whether a
# readmission followed: within 30 days, later, or not. What is foretold below is the label of the
# platform's setting `LABEL`: any readmission, unless told otherwise.
#
# Rows leave the table in two places and nowhere else. The contract takes out what cannot be an
# encounter (a count below zero, a word outside of a closed vocabulary, an encounter number seen
# before) and keeps it in quarantine with its reason. The cohort leaves out stays that ended in
# death or hospice: hardly anybody is readmitted from there, and a model that may look at them
# learns that instead of what it is asked.

# %%
settings = Settings()
raw, source = encounters.read(settings.data, rows=settings.rows, seed=settings.seed)
accepted, quarantined = encounters.apply_contract(raw)
cohort = splits.with_side(encounters.cohort(accepted, settings.label))

# %% tags=["hide-input"]
gallery = Gallery(
    f"Synthetic cohort, {len(raw):,} rows: none describes a real encounter."
    if source.synthetic
    else f"Published encounters, {len(raw):,} rows."
)
if source.synthetic:
    say(f"> {card_words.SYNTHETIC}")
flow = {
    "the source": len(raw),
    "in quarantine": len(quarantined),
    "ended in death or hospice": len(accepted) - len(cohort),
    "the cohort": len(cohort),
    "followed by a readmission": int(cohort[schema.LABEL].sum()),
}
table(pd.DataFrame({"rows": list(flow), "encounters": [f"{n:,}" for n in flow.values()]}))
outcomes = cohort[schema.OUTCOME].value_counts(normalize=True)
left_out = accepted["discharge_disposition_id"].isin(schema.DEATH_OR_HOSPICE)
ended = accepted[schema.OUTCOME][left_out].isin(schema.POSITIVE_OUTCOMES[settings.label])
say(
    f"The cohort has {cohort[schema.PATIENT].nunique():,} patients. After {outcomes['<30']:.1%} of "
    f"its encounters they came back within 30 days, after {outcomes['>30']:.1%} later, after "
    f"{outcomes['NO']:.1%} not, as far as the table knows: a readmission elsewhere and a death "
    "after discharge are written as none. Of the stays that were left out, "
    f"{ended.mean():.1%} are followed by one."
)

# %% [markdown]
# Who is in it: below, the groups that the gate holds every challenger to account for. Race is no
# feature of the model; it is there to see whether the model fares worse for somebody. Groups of
# fewer than 200 encounters are not drawn. Of them nothing can be said, which is not to say that all
# is well.

# %%
labels = cohort[schema.LABEL].to_numpy(dtype=float)
patients = cohort[schema.PATIENT].to_numpy()
groups = {
    f"{name}: {level}": (cohort[name] == level).to_numpy()
    for name in GROUPS
    for level in sorted(cohort[name].unique(), reverse=True)
}
rates = {
    f"{name}  ({rows.sum():,})": measured(share, labels[rows], patients=patients[rows])
    for name, rows in groups.items()
    if rows.sum() >= SMALLEST_GROUP
}

# %% tags=["hide-input"]
with gallery.figure(
    "Who is in the cohort, and how often a readmission follows",
    "Share of encounters that a readmission followed, by group (in brackets: encounters), with "
    "95 % intervals resampled by patient. Dashed: all.",
    height=4.6,
) as (_, (axes,)):
    bars(axes, range(len(rates)), list(rates.values()), BLUE)
    axes.axvline(labels.mean(), color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rates)), [name.replace("?", "not recorded") for name in rates])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(percent)
    axes.set_xlabel("followed by a readmission")

# %% [markdown]
# ## What is not recorded
#
# The table has three ways to say that something is not known. Text columns hold `?`. The three
# coded columns have codes for "not available", "not mapped" and "NULL". The two laboratory columns
# hold `None`, which is different: no test was made, and a physician who orders HbA1c has a reason.
# To drop the incomplete rows would leave next to nothing, to fill them in would invent patients. So
# nothing is imputed: not recorded is a level like any other.
#
# That has a price, seen below. What is recorded is decided by hospitals and their software, and
# changes with them. A column that was empty when a model learned and is full when it is used is
# drift, whether or not any patient has changed.

# %%
UNKNOWN = {"NULL", "Not Available", "Not Mapped", "Unknown/Invalid"}
tables = (schema.ADMISSION_TYPES, schema.DISCHARGE_DISPOSITIONS, schema.ADMISSION_SOURCES)
no_meaning = {
    column: [code for code, meaning in meanings.items() if meaning in UNKNOWN]
    for column, meanings in zip(schema.CODES, tables, strict=True)
}
absent = pd.DataFrame(
    {
        **{column: cohort[column] == schema.MISSING for column in schema.OPEN},
        **{column: cohort[column].isin(codes) for column, codes in no_meaning.items()},
        "A1Cresult: no test": cohort["A1Cresult"] == "None",
        "max_glu_serum: no test": cohort["max_glu_serum"] == "None",
    }
)
TENTHS = range(1, 11)
tenth = np.minimum(cohort[schema.POSITION] * 10 // len(raw), 9) + 1
by_tenth = absent.groupby(tenth).mean().T.loc[absent.mean().sort_values(ascending=False).index]

# %% tags=["hide-input"]
with gallery.figure(
    "What is not recorded changes with the calendar",
    "Share of encounters without a value, by column and by tenth of the encounter order.",
    height=4.4,
) as (chart, (axes,)):
    mesh = axes.imshow(by_tenth, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(by_tenth.to_numpy()):
        colour = "white" if value > 0.6 else INK
        axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(10), list(map(str, TENTHS)))
    axes.set_yticks(range(len(by_tenth)), by_tenth.index)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xlabel("tenth of the table, in encounter order")
    bar = chart.colorbar(mesh, ax=axes, aspect=40, pad=0.01, format=percent)
    bar.set_label("not recorded")
    bar.outline.set_visible(False)
moved = (by_tenth.max(axis=1) - by_tenth.min(axis=1)).nlargest(2).index
first, second = (
    f"`{name}`, from {by_tenth.loc[name].iloc[0]:.0%} not recorded in the first tenth to "
    f"{by_tenth.loc[name].iloc[-1]:.0%} in the last"
    for name in moved
)
say(
    f"Two columns move most: {first}; and {second}. The weight is almost never known, and stays in "
    f"the model for the {1 - by_tenth.loc['weight'].mean():.0%} of whom it is."
)

# %% [markdown]
# ## Order is the only clock
#
# The table has no dates. It comes in order of `encounter_id`, all but a handful of rows, and what
# is drawn against that order moves slowly and together, as along a calendar. That numbers were
# given out as encounters happened is an inference; all that is called "later" here and in the
# platform rests on it.

# %%
followed = {
    "any readmission": cohort[schema.OUTCOME] != "NO",
    "readmission within 30 days": cohort[schema.OUTCOME] == "<30",
    "admitted through the emergency room": (cohort["admission_source_id"] == schema.EMERGENCY_ROOM),
    "inpatient stay in the year before": cohort["number_inpatient"] > 0,
}
course = {
    name: [
        measured(share, values[tenth == t].to_numpy(float), patients=patients[tenth == t])
        for t in TENTHS
    ]
    for name, values in followed.items()
}

# %% tags=["hide-input"]
with gallery.figure(
    "The world that the rows come from moves",
    "Share of encounters by tenth of the encounter order, with 95 % intervals resampled by "
    "patient.",
    2,
    2,
    height=5.2,
) as (_, panels):
    for axes, (name, shares), colour in zip(
        panels, course.items(), (BLUE, RED, GREEN, INK), strict=True
    ):
        band(axes, TENTHS, shares, colour)
        axes.set_title(name)
        axes.set_ylim(0, 1.15 * max(high for _, _, high in shares))
        axes.yaxis.set_major_formatter(percent)
        axes.set_xticks(TENTHS)
    for axes in panels[2:]:
        axes.set_xlabel("tenth of the table, in encounter order")
    for axes in panels[::2]:
        axes.set_ylabel("share of encounters")
ever, soon = (
    [value for value, _, _ in course[name]]
    for name in ("any readmission", "readmission within 30 days")
)
say(
    f"The rate of any readmission lies between {min(ever):.2f} and {max(ever):.2f}, that within 30 "
    f"days between {min(soon):.3f} and {max(soon):.3f}: what moves is whether somebody comes back "
    "*later*. At the end of the table part of that must be the window: a stay near its end has "
    "less time left in which a late readmission can be recorded, and the rate falls without any "
    "patient being better off. The 30-day label is nearly free of this, and rare. Whoever "
    "foretells any readmission has to recalibrate as time goes on, and this figure is why the "
    "platform looks at expected against observed readmissions first."
)

# %% [markdown]
# ## Who comes back
#
# Whether somebody was readmitted is in part written in the table twice: in the column that says so,
# and in the row of the stay that followed.

# %%
visit = cohort.groupby(schema.PATIENT).cumcount() + 1
visits = cohort.groupby(schema.PATIENT)[schema.PATIENT].transform("size")
capped = np.minimum(visit, 6)
by_visit = [
    measured(share, labels[capped == n], patients=patients[capped == n]) for n in range(1, 7)
]
returns = (visit < visits).to_numpy()
with_later, without_later = (
    measured(share, labels[rows], patients=patients[rows]) for rows in (returns, ~returns)
)

# %% tags=["hide-input"]
people = cohort.groupby(schema.PATIENT).size().clip(upper=10).value_counts().sort_index()
with gallery.figure(
    "Most patients are seen once; many rows are not theirs",
    "Left: patients by their number of encounters. Right: share of encounters that a readmission "
    "followed, by the visit of the patient, with 95 % intervals resampled by patient.",
    1,
    2,
    height=3.4,
) as (_, (left, right)):
    left.bar(people.index, people, color=BLUE)
    left.set_yscale("log")
    left.set_xlabel("encounters of a patient (10: ten or more)")
    left.set_ylabel("patients (logarithmic)")
    left.set_xticks(range(1, 11))
    left.grid(axis="x", visible=False)
    bars(right, range(6), by_visit, BLUE)
    right.set_yticks(range(6), ["1", "2", "3", "4", "5", "6 or later"])
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.set_ylabel("visit in the table")
    right.set_xlabel("followed by a readmission")
    right.xaxis.set_major_formatter(percent)
say(
    f"{people[people.index > 1].sum() / people.sum():.0%} of the patients are seen more than once, "
    f"and {(visits > 1).mean():.0%} of the encounters are theirs. Where a later row of the patient "
    f"exists, a readmission was recorded after {with_later[0]:.1%} of the encounters; where none "
    f"exists, after {without_later[0]:.1%}. Whoever counts a patient's rows counts the outcome."
)

# %% [markdown]
# ## How to fool oneself
#
# Rows of one patient resemble each other. If some of them are learned from and others judged on, a
# model may be praised for recognising people. That is why splits are made by patient. What the
# careless split would have claimed is worth measuring, because the answer is not the expected one.
#
# Two cross-validations of five folds score the same encounters: one deals out rows, the other
# patients. The difference is paired. The logistic regression has the platform's features. So have
# the neighbours, but they do not generalise: their score is the share of readmissions among the
# fifteen rows most alike, so that what they gain is memory. Then the regression is given one
# feature more, which is easily made where a table is at hand: how many rows the patient has in it,
# so far or altogether.

# %%
ENCOUNTERS, FOLDS, NEIGHBOURS = 20_000, 5, 15
draw = np.random.default_rng(settings.seed)
drawn = cohort.groupby(schema.PATIENT).size().sample(frac=1, random_state=settings.seed)
some = cohort[cohort[schema.PATIENT].isin(drawn.index[drawn.cumsum() <= ENCOUNTERS])]
some_labels = some[schema.LABEL].to_numpy(dtype=float)
identities, some_patients = np.unique(some[schema.PATIENT], return_inverse=True)
row_folds = draw.integers(FOLDS, size=len(some))
patient_folds = draw.integers(FOLDS, size=len(identities))[some_patients]
logistic = Candidate("logistic_regression", FAMILIES["logistic_regression"].default)


def regression(x: np.ndarray, y: np.ndarray) -> Estimator:
    """Returns the platform's logistic regression, fitted."""
    return fit(logistic, Sample(x, y), settings.seed)


def neighbours(x: np.ndarray, y: np.ndarray) -> Estimator:
    """Returns what remembers its rows."""
    return KNeighborsClassifier(NEIGHBOURS, algorithm="brute").fit(x, y)


learners = {
    "regression": (regression, None),
    f"{NEIGHBOURS} nearest neighbours": (neighbours, None),
    "regression, told the rows so far": (regression, visit),
    "regression, told all rows": (regression, visits),
}


def out_of_fold(folds: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each learner's scores (n,): of every encounter, learned from the other folds."""
    scores = {name: np.empty(len(some)) for name in learners}
    for fold in range(FOLDS):
        inside = folds != fold
        plain = features.preprocessor().fit(some[inside]).transform(some).astype(np.float32)
        for name, (learn, further) in learners.items():
            x = plain
            if further is not None:
                x = np.column_stack([plain, np.log(further[some.index])])
            learned = learn(x[inside], some_labels[inside])
            scores[name][~inside] = learned.predict_proba(x[~inside])[:, 1]
    return scores


by_row, by_patient = out_of_fold(row_folds), out_of_fold(patient_folds)
scored = {name: (by_row[name], by_patient[name]) for name in learners}

# %% tags=["hide-input"]


def auc_gap(y: np.ndarray, some: np.ndarray, others: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns by how much one scoring has the larger AUC, as a measure does."""
    gap: np.ndarray = metrics.auc(y, some, weights) - metrics.auc(y, others, weights)
    return gap


claims = {
    name: [measured(metrics.auc, some_labels, s, patients=some_patients) for s in both]
    for name, both in scored.items()
}
gaps = {
    name: measured(auc_gap, some_labels, *both, patients=some_patients)
    for name, both in scored.items()
}
with gallery.figure(
    "What each split claims of each learner",
    f"AUC of five-fold cross-validation on {len(some):,} encounters, with 95 % intervals resampled "
    "by patient.",
    height=3.4,
) as (_, (axes,)):
    places = np.arange(len(claims))
    bars(axes, places - 0.12, [rows for rows, _ in claims.values()], RED)
    bars(axes, places + 0.12, [patients for _, patients in claims.values()], BLUE)
    axes.set_yticks(places, [name.replace(", ", ",\n") for name in claims])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("AUC")
    legend(axes, {"folds of rows": RED, "folds of patients": BLUE}, "upper right")
table(
    pd.DataFrame(
        [
            (name, words(rows), words(patients), difference(gap))
            for (name, (rows, patients)), gap in zip(claims.items(), gaps.values(), strict=True)
        ],
        columns=["learner", "folds of rows", "folds of patients", "rows less patients"],
    )
)


def told(gap: Measured) -> str:
    """Returns a difference in words, chance considered."""
    beyond = "beyond chance" if gap[1] > 0 or gap[2] < 0 else "which chance makes as well"
    return f"{difference(gap)}, {beyond}"


of_regression, of_memory, *_others = gaps.values()
honest, leak = (on_patients for _, on_patients in list(claims.values())[2:])
alone = measured(metrics.auc, labels, visits.to_numpy(float), patients=patients)
say(
    f"The careless split changes the AUC of the regression by {told(of_regression)}: with its "
    "penalty and its few features it has nowhere to keep a person. It changes that of the "
    f"neighbours by {told(of_memory)}. The split by patient is not there because it makes today's "
    "figure smaller. It is there because a search takes whatever scores best, and would be paid "
    "for memory."
)
say(
    "The last line is the one to be afraid of. Told all rows, the regression comes to "
    f"{words(leak)} **on patients it has never seen**: their later rows are in the count, so the "
    "outcome is in the feature, and no dealing out of patients takes it from there. Told the rows "
    f"so far, all that is known on the day, it comes to {words(honest)}."
)
if alone[0] <= fitting.LEAK_AUC and leak[0] <= CEILING_AUC:
    say(
        "Nor would an alarm ring. The check on single features lets pass what has an AUC of up to "
        f"{fitting.LEAK_AUC:.2f} alone, and the count has {words(alone)}; the gate takes up to "
        f"{CEILING_AUC:.2f} for plausible. What keeps such a feature out is how features are made: "
        "each is a function of the encounter as it is sent to the service, from where no other row "
        "can be reached."
    )

# %% [markdown]
# ## What order hides
#
# A random split has a fault that no dealing out of patients mends: it learns from the months that
# it is judged on. The platform is never in that position. This is the one it is in: a regression
# learned from the first fifth of the table, calibrated on its newest validation patients, then
# asked about everything after it and never renewed. It is judged on patients it has not learned
# from, as everywhere.

# %%
seen = cohort[cohort[schema.POSITION] < splits.Calendar(len(raw), 0, 1).initial_rows]
frozen = fitting.learn(
    seen, fitting.fit_preprocessor(seen), logistic, seed=settings.seed, harm=settings.harm
)


def worth(model: fitting.Fitted, frame: pd.DataFrame) -> dict[str, Measured]:
    """Returns what a model's forecast of some encounters is worth."""
    foretold = model.pipeline.predict_proba(frame)[:, 1]
    return figures(frame[schema.LABEL].to_numpy(), foretold, frame[schema.PATIENT].to_numpy())


claimed = worth(frozen, splits.on_side(seen, "test"))
strangers = cohort[cohort[schema.SIDE] != "train"]
later = {t: worth(frozen, strangers[tenth[strangers.index] == t]) for t in range(3, 11)}

# %% tags=["hide-input"]
with gallery.figure(
    "One model, never renewed",
    "The model of the first fifth on patients it has not learned from, tenth by tenth, with 95 % "
    "intervals resampled by patient. Dashed: test patients of the first fifth. Grey: the bounds "
    "within which the platform calls a batch calibrated.",
    1,
    2,
    height=3.4,
) as (_, panels):
    for axes, name, colour in zip(panels, ("AUC", "expected/observed"), (BLUE, RED), strict=True):
        band(axes, list(later), [forecast[name] for forecast in later.values()], colour)
        axes.axhline(claimed[name][0], color=INK, linewidth=1, linestyle="--")
        axes.set_title(name)
        axes.set_xlabel("tenth of the table, in encounter order")
        axes.set_xticks(list(later))
    panels[1].axhspan(*CALIBRATION_BOUNDS, color=FAINT, alpha=0.15, linewidth=0)
aucs, ratios = (
    [forecast[name][0] for forecast in later.values()] for name in ("AUC", "expected/observed")
)
say(
    f"On test patients of its own months the model has an AUC of {words(claimed['AUC'])} and "
    f"expected over observed of {words(claimed['expected/observed'], 2)}. Later the AUC lies "
    f"between {min(aucs):.3f} and {max(aucs):.3f}, and expected over observed between "
    f"{min(ratios):.2f} and {max(ratios):.2f}. A model that learns from a random part of all "
    "months meets the mean of them and is told of none of this. It is what the retraining loop is "
    "for, and why its verdicts rest on the newest encounters alone."
)

# %% [markdown]
# ## The baseline
#
# What any other model has to beat: logistic regression on the shipped features with the default
# penalty and no search, learned as the platform learns (the train side, newer encounters counting
# more, calibrated on the newest validation patients). It learns from the first four fifths of the
# table and is judged on test patients of the last: people it does not know, in months it has not
# seen.

# %%
before = cohort[schema.POSITION] < 0.8 * len(raw)
past, future = cohort[before], cohort[~before]
preprocessor = fitting.fit_preprocessor(past)
baseline = fitting.learn(past, preprocessor, logistic, seed=settings.seed, harm=settings.harm)
judged = splits.on_side(future, "test")
results = {
    "the same months": worth(baseline, splits.on_side(past, "test")),
    "the last fifth": worth(baseline, judged),
}
single = fitting.single_feature_aucs(past, preprocessor)

# %% tags=["hide-input"]
table(
    pd.DataFrame(
        [(name, *map(words, result.values())) for name, result in results.items()],
        columns=["test patients of", *claimed],
    )
)
best = sorted(single.items(), key=lambda item: -item[1])[:3]
say(
    f"Learned from {len(splits.on_side(past, 'train')):,} encounters; the last line is judged on "
    f"{len(judged):,} of {judged[schema.PATIENT].nunique():,} patients. For comparison, what a "
    "shallow tree makes of one feature alone, on validation patients of the same months: "
    + ", ".join(f"`{name}` {value:.3f}" for name, value in best)
    + "."
)

# %% [markdown]
# A probability that is shown to a ward has to mean what it says. Below, each point is a tenth of
# the judged encounters by their score; on the diagonal as many are readmitted as was said.

# %% tags=["hide-input"]
scores = baseline.pipeline.predict_proba(judged)[:, 1]
happened, whose = judged[schema.LABEL].to_numpy(float), judged[schema.PATIENT].to_numpy()
group = scores.argsort(kind="stable").argsort(kind="stable") * 10 // len(scores)
observed = [measured(share, happened[group == g], patients=whose[group == g]) for g in range(10)]
with gallery.figure(
    "What the baseline says, and what happens",
    "Reliability of the baseline on test patients of the last fifth, by tenths of the score, with "
    "95 % intervals resampled by patient; below, how the scores are spread.",
    2,
    1,
    height=5.4,
    ratios=(3, 1),
) as (_, (above, below)):
    above.axline((0, 0), slope=1, color=FAINT, linewidth=1)
    said = [scores[group == g].mean() for g in range(10)]
    value, low, high = np.array(observed).T
    above.vlines(said, low, high, color=BLUE, linewidth=2, alpha=0.45)
    above.plot(said, value, "o", color=BLUE, markersize=5)
    above.set_ylabel("readmitted")
    above.set_ylim(0, 1)
    below.hist(scores, bins=40, range=(0, 1), color=BLUE)
    below.set_ylabel("encounters")
    below.set_xlabel("score: the probability of a readmission that was said")
    for axes in (above, below):
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(percent)
    above.yaxis.set_major_formatter(percent)
final = results["the last fifth"]
ratio, slope = final["expected/observed"], final["calibration slope"]
verdict = (
    "more readmissions are said than happen"
    if ratio[1] > 1
    else "fewer readmissions are said than happen"
    if ratio[2] < 1
    else "on the whole as many are said as happen, as far as chance allows"
)
say(
    f"Expected over observed is {words(ratio, 2)}: {verdict}. The slope is {words(slope, 2)}; "
    "below 1 scores are further apart than outcomes, above 1 closer together. Where all points lie "
    "off the diagonal by the same step, the rate has moved, and a new calibration mends it; where "
    "the slope is off, how far people differ has changed, and that takes more than a shift."
)

# %% [markdown]
# ### What it leans on
#
# Coefficients of standardised numbers and of levels, in log-odds. How far a level moves people
# apart depends on how often it occurs, so the figure takes the coefficients that are largest times
# their standard deviation. The intervals are a sandwich estimate for the penalised fit with
# patients as clusters: they say how much another draw of patients would change, not how far the
# penalty has pulled a rare level towards zero.

# %%
sample = fitting.sample(past, preprocessor, "train")
model = baseline.pipeline["classifier"].calibrated_classifiers_[0].estimator.estimator
beta = np.r_[model.intercept_, model.coef_[0]]
x = np.column_stack([np.ones(len(sample.y)), sample.x]).astype(float)
risk = 1 / (1 + np.exp(-x @ beta))
penalty = np.diag(np.r_[0.0, np.full(len(beta) - 1, 1 / logistic.params["C"])])
bread = np.linalg.inv((x * (sample.weight * risk * (1 - risk))[:, None]).T @ x + penalty)
pulls = pd.DataFrame(x * (sample.weight * (sample.y - risk))[:, None])
per_patient = pulls.groupby(splits.on_side(past, "train")[schema.PATIENT].to_numpy()).sum()
errors = np.sqrt(np.diag(bread @ (per_patient.T @ per_patient).to_numpy() @ bread))
named = features.columns(preprocessor)
coefficients = pd.DataFrame(
    {
        "feature": [n for n, columns in named.items() for _ in columns],
        "name": preprocessor["encode"].get_feature_names_out(),
        "beta": beta[1:],
        "error": errors[1:],
        "moves": np.abs(beta[1:]) * x[:, 1:].std(axis=0),
    }
)
top = coefficients.nlargest(24, "moves").iloc[::-1]

# %% tags=["hide-input"]
meanings = dict(zip(schema.CODES, tables, strict=True))


def level(feature: str, name: str) -> str:
    """Returns a coefficient's name as people read it."""
    of_level = name.removeprefix(feature).removeprefix("_")
    if of_level == "infrequent_sklearn":
        of_level = "rare ones together"
    elif feature in meanings:
        of_level = meanings[feature].get(int(of_level), of_level)
    return f"{feature}: {textwrap.shorten(of_level, 48, placeholder=' …')}" if of_level else feature


with gallery.figure(
    "What moves the baseline's scores",
    "The 24 coefficients that move people furthest apart, with 95 % intervals.",
    height=6.6,
) as (_, (axes,)):
    spans = [
        (b, b - 1.96 * e, b + 1.96 * e) for b, e in zip(top["beta"], top["error"], strict=True)
    ]
    counted = top["feature"].isin(features.NUMERIC)
    for kind, colour in ((counted, BLUE), (~counted, GREEN)):
        places = np.flatnonzero(kind)
        bars(axes, places, [spans[place] for place in places], colour)
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.set_yticks(range(len(top)), map(level, top["feature"], top["name"]))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("coefficient, log-odds (of a number: one standard deviation)")
    legend(axes, {"number": BLUE, "level": GREEN}, "lower right")
say(
    "None of these is a cause. A coefficient of a discharge to another hospital says where sicker "
    "people go; one of a payer, also in which months payers were written down at all. Features "
    "that tell the same story, such as `number_inpatient` and its logarithm, share its weight "
    "between them and cannot be read alone."
)

# %% [markdown]
# ## What the platform takes from this
#
# - Rows are dropped in one place, and what is not recorded stays a level (`encounters`,
#   `features`).
# - A patient is on one side for all time, by a keyed hash; a blocking check stops the graph
#   otherwise (`splits`, `no_patient_on_two_sides`).
# - A feature is a function of one encounter: rows of the future cannot be counted.
# - Order is the clock: batches arrive in it, models learn from what lies behind them, and the
#   newest people judge (`splits.Calendar`, `gate`).
# - Calibration is measured on every batch and renewed with every model (`outcomes`, `fitting`).
# - Every interval is resampled by patient (`metrics.by_patient`).
# - The baseline's family takes part in every search: what is promoted had to beat it there
#   (`models.FAMILIES`).
