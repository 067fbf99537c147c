"""Group `data`: from the published table to arriving batches."""

from datetime import timedelta
from typing import Any

import dagster as dg
import pandas as pd

from health_predict import encounters as table
from health_predict import schema, served, splits
from health_predict.defs.facts import HELD_BACK
from health_predict.defs.partitions import batch_number, batches, is_served
from health_predict.defs.recording import latest_metadata
from health_predict.defs.resources import Arrival, EncounterSource
from health_predict.store import Store

OWNERS = ["team:ml-platform"]
# Any readmission moves from .37 to .54 within the published data, within 30 days about .11.
PLAUSIBLE_LABEL_RATE = {"any": (0.25, 0.65), "30d": (0.05, 0.20)}
# Beyond this age data are stale: batches arrive daily, and two may fail before a person is called.
RAW_FRESH_FOR, BATCH_FRESH_FOR = timedelta(days=90), timedelta(days=3)


def _table_facts(frame: pd.DataFrame) -> dict[str, Any]:
    columns = [dg.TableColumn(name, str(kind)) for name, kind in frame.dtypes.items()]
    return {
        "dagster/row_count": len(frame),
        "dagster/column_schema": dg.TableSchema(columns=columns),
    }


@dg.asset(
    group_name="data",
    owners=OWNERS,
    kinds={"pandas", "parquet"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=RAW_FRESH_FOR),
)
def raw_encounters(
    context: dg.AssetExecutionContext, source: EncounterSource
) -> dg.MaterializeResult[pd.DataFrame]:
    """The encounters as published: 50 columns of text, nothing dropped, and `intervened` if given.

    Read from the setting `HEALTH_PREDICT_DATA`. Its source and digest go with every model that
    learns from it; a synthetic cohort is called synthetic wherever its figures show.
    """
    raw, origin = source.read(context.log.info)
    context.log.info(f"{len(raw):,} rows from {origin.name} ({origin.caption})")
    return dg.MaterializeResult(
        value=raw,
        metadata={
            **_table_facts(raw),
            "source": origin.name,
            "caption": origin.caption,
            "sha256": origin.sha256,
            "intervened_marked": schema.INTERVENED in raw,
        },
        data_version=dg.DataVersion(origin.sha256),
    )


@dg.multi_asset(
    group_name="data",
    outs={
        "encounters": dg.AssetOut(
            dagster_type=pd.DataFrame,
            description=(
                "The cohort: rows that keep the contract, typed, with the label. Discharges to "
                "hospice and deaths are left out here and nowhere else."
            ),
            owners=OWNERS,
            kinds={"pandas", "pandera"},
        ),
        "quarantine": dg.AssetOut(
            dagster_type=pd.DataFrame,
            description="Rows that break the contract, as they came, with one reason each.",
            owners=OWNERS,
            kinds={"pandas", "pandera"},
        ),
    },
    check_specs=[
        dg.AssetCheckSpec(
            "contract_is_kept",
            asset="encounters",
            blocking=True,
            description="No more of the initial rows than the settings allow are in quarantine; "
            "later ones are asked batch by batch.",
        )
    ],
)
def encounters(
    context: dg.AssetExecutionContext,
    raw_encounters: pd.DataFrame,
    source: EncounterSource,
    arrival: Arrival,
) -> Any:
    """The cohort, and beside it the rows that broke the contract."""
    accepted, quarantined = table.apply_contract(raw_encounters)
    cohort = table.cohort(accepted, source.label_name)
    learned_first = range(arrival.calendar(len(raw_encounters)).initial_rows)
    share = len(splits.within(quarantined, learned_first)) / len(learned_first)
    reasons = _reasons(quarantined)
    yield dg.Output(
        cohort,
        "encounters",
        metadata={
            **_table_facts(cohort),
            "label": source.label_name,
            "label_rate": round(float(cohort[schema.LABEL].mean()), 4),
            "outside_cohort": len(accepted) - len(cohort),
            "intervened": int(cohort[schema.INTERVENED].sum()),
            "patients": int(cohort[schema.PATIENT].nunique()),
        },
    )
    yield dg.Output(
        quarantined, "quarantine", metadata={**_table_facts(quarantined), "reasons": reasons}
    )
    yield dg.AssetCheckResult(
        asset_key="encounters",
        check_name="contract_is_kept",
        passed=share <= source.largest_quarantine,
        metadata={"share_of_initial_rows": share, "quarantined": len(quarantined)},
    )


@dg.asset_check(asset="encounters", blocking=True)
def cohort_excludes_hospice_and_death(encounters: pd.DataFrame) -> dg.AssetCheckResult:
    """No encounter of the cohort ended in death or hospice."""
    outside = encounters["discharge_disposition_id"].isin(schema.DEATH_OR_HOSPICE)
    return dg.AssetCheckResult(passed=not outside.any(), metadata={"rows": int(outside.sum())})


@dg.asset_check(asset="encounters", blocking=True)
def label_rate_is_plausible(
    encounters: pd.DataFrame, source: EncounterSource
) -> dg.AssetCheckResult:
    """The share of readmissions lies where the published data put it."""
    low, high = PLAUSIBLE_LABEL_RATE[source.label_name]
    rate = float(encounters[schema.LABEL].mean())
    return dg.AssetCheckResult(
        passed=low <= rate <= high, metadata={"rate": rate, "low": low, "high": high}
    )


def _calendar(instance: dg.DagsterInstance, arrival: Arrival) -> splits.Calendar:
    return arrival.calendar(latest_metadata(instance, "raw_encounters")["dagster/row_count"])


@dg.asset(group_name="data", owners=OWNERS, kinds={"pandas", "parquet"})
def initial(
    context: dg.AssetExecutionContext, encounters: pd.DataFrame, arrival: Arrival
) -> dg.MaterializeResult[pd.DataFrame]:
    """The first 20 % of the encounters: what the first champion learns from."""
    calendar = _calendar(context.instance, arrival)
    frame = splits.within(encounters, range(calendar.initial_rows))
    return dg.MaterializeResult(value=frame, metadata=_table_facts(frame))


@dg.asset(group_name="data", owners=OWNERS, kinds={"pandas", "parquet"})
def future(
    context: dg.AssetExecutionContext, encounters: pd.DataFrame, arrival: Arrival
) -> dg.MaterializeResult[pd.DataFrame]:
    """The other 80 %: encounters that have not happened yet, from which batches arrive."""
    calendar = _calendar(context.instance, arrival)
    frame = splits.within(encounters, range(calendar.initial_rows, calendar.rows))
    return dg.MaterializeResult(
        value=frame, metadata={**_table_facts(frame), "batches": calendar.count}
    )


@dg.asset(
    group_name="data",
    owners=OWNERS,
    kinds={"pandas", "parquet"},
    partitions_def=batches,
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=BATCH_FRESH_FOR),
)
def future_batch(
    context: dg.AssetExecutionContext,
    future: pd.DataFrame,
    quarantine: pd.DataFrame,
    arrival: Arrival,
    source: EncounterSource,
    store: dg.ResourceParam[Store],
) -> dg.MaterializeResult[pd.DataFrame]:
    """One batch of encounters, in order of arrival.

    `batch-...` arrives by schedule. `served-...` is what the service was asked about, with the
    scores it gave; it has no patients and no outcomes, and nothing is learned from it.

    Rows that break the contract stay in quarantine. A batch too many of whose rows do is held back
    as a whole: mend the source, run the job refresh_data, then materialise the batch again.
    """
    key = context.partition_key
    facts: dict[str, Any] = {}
    if is_served(key):
        rows, frame, broken, facts = _served(store, key)
    else:
        span = _calendar(context.instance, arrival).span(batch_number(key))
        rows = len(span)
        frame, broken = (splits.within(part, span) for part in (future, quarantine))
    share = len(broken) / rows
    if share > source.largest_quarantine:
        words = _held_back(key, broken, share, source.largest_quarantine)
        context.instance.add_run_tags(context.run_id, {HELD_BACK: words})
        raise dg.Failure(words, allow_retries=False)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            **_table_facts(frame),
            "quarantined": len(broken),
            "reasons": _reasons(broken),
            **facts,
        },
    )


def _served(store: Store, key: str) -> tuple[int, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Returns rows, the batch, its quarantine and what is known of a slice of served traffic."""
    cut = served.find(store, key)
    frame, broken = served.table(store, key)
    kept = served.keep_quarantine(store, key, broken)
    facts = {
        "served_from": cut.first,
        "served_until": cut.last,
        "requests_of_roll_outs": cut.left_out,
        "unreadable_lines": cut.skipped,
        "torn_files": cut.torn,
        "quarantine": dg.MetadataValue.path(kept),
    }
    return cut.rows, frame, broken, facts


def _held_back(batch: str, broken: pd.DataFrame, share: float, limit: float) -> str:
    commonest = next(iter(_reasons(broken)))
    remedy = (
        "Mend the client that sends them; to look at the rest all the same, raise "
        "HEALTH_PREDICT_LARGEST_QUARANTINE and materialise the batch again."
        if is_served(batch)
        else "Mend the source, run the job refresh_data, then materialise the batch again; "
        "nothing of it was scored."
    )
    return (
        f"{batch} is held back: {share:.0%} of its rows break the contract (at most {limit:.0%} "
        f"may), most often in {commonest}. {remedy}"
    )


def _reasons(broken: pd.DataFrame) -> dict[str, int]:
    """Returns column -> rows in quarantine for it, the commonest first."""
    counted: dict[str, int] = broken[table.REASON].str.split(":").str[0].value_counts().to_dict()
    return counted


ASSETS = [raw_encounters, encounters, initial, future, future_batch]
CHECKS = [cohort_excludes_hospice_and_death, label_rate_is_plausible]
