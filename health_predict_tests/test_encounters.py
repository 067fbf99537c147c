"""Encounters are read whole or not at all; broken rows go to quarantine, each with its reason."""

import hashlib
import http.server
import io
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from health_predict import encounters, schema
from health_predict.encounters import DataError
from health_predict.store import open_store

ROWS = 40


@pytest.fixture
def few(raw) -> pd.DataFrame:
    return raw.iloc[:ROWS].copy()


@pytest.fixture
def csv(few, tmp_path) -> Path:
    path = tmp_path / encounters.TABLE
    few.to_csv(path, index=False)
    return path


@pytest.fixture
def impatient(monkeypatch) -> list[float]:
    """Waiting between tries takes no time; returns how long each wait would have been."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    return waits


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name.replace("__", "/"), member)
    return content.getvalue()


def read(location: str | Path) -> pd.DataFrame:
    return encounters.read(str(location), rows=1, seed=0)[0]


def as_it_came(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns rows without what the contract added to them."""
    return frame.drop(columns=[encounters.REASON, schema.POSITION], errors="ignore")


def contract_of(frame: pd.DataFrame, **changes: str | None) -> tuple[pd.DataFrame, str]:
    """Breaks one row in the middle; returns the accepted rows and the reason of the one refused."""
    broken = frame.copy()
    broken.loc[broken.index[17], list(changes)] = list(changes.values())
    accepted, quarantined = encounters.apply_contract(broken)
    assert len(accepted) == len(frame) - 1
    (reason,) = quarantined[encounters.REASON]
    came = as_it_came(quarantined)
    pd.testing.assert_frame_equal(came, broken.iloc[[17]].reset_index(drop=True))
    return accepted, reason


@contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Runs an HTTP server of this machine; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/table.csv"
    finally:
        server.shutdown()
        server.server_close()


def give(content: bytes, promised: int = 0) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content) + promised))
        request.end_headers()
        request.wfile.write(content)

    return answer


# --- reading -------------------------------------------------------------------------------------


def test_a_csv_is_read_as_it_stands(csv, few):
    frame, source = encounters.read(str(csv), rows=1, seed=0)
    pd.testing.assert_frame_equal(frame, few)
    assert source.sha256 == hashlib.sha256(csv.read_bytes()).hexdigest()
    assert source.caption == "published encounters"


@pytest.mark.parametrize("member", [encounters.TABLE, f"dataset_diabetes__{encounters.TABLE}"])
def test_a_zip_gives_the_table_and_its_digest(csv, few, tmp_path, member):
    path = tmp_path / "archive.zip"
    path.write_bytes(zipped(**{"IDS_mapping.csv": b"x", member: csv.read_bytes()}))
    frame, source = encounters.read(str(path), rows=1, seed=0)
    pd.testing.assert_frame_equal(frame, few)
    assert source.sha256 == hashlib.sha256(csv.read_bytes()).hexdigest()


def test_none_is_a_level_and_not_a_missing_value(csv, few):
    assert (few["A1Cresult"] == "None").any()
    assert not read(csv).isna().any(axis=None)


def test_columns_in_another_order_are_put_into_the_published_one(few, tmp_path):
    few[few.columns[::-1]].to_csv(tmp_path / "turned.csv", index=False)
    pd.testing.assert_frame_equal(read(tmp_path / "turned.csv"), few)


def test_the_synthetic_cohort_is_called_synthetic_and_has_a_digest_of_its_own():
    sources = [encounters.read("synthetic", rows=300, seed=seed)[1] for seed in (1, 1, 2)]
    assert sources[0] == sources[1]
    assert sources[0].sha256 != sources[2].sha256
    assert sources[0].synthetic
    assert sources[0].caption == "synthetic cohort"


def test_a_file_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path / "absent.zip")
    assert str(tmp_path / "absent.zip") in str(error.value)
    assert "HEALTH_PREDICT_DATA" in str(error.value)


def test_a_folder_is_not_a_table(tmp_path):
    with pytest.raises(DataError, match="no file at"):
        read(tmp_path)


def test_an_archive_without_the_table_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "other.zip").write_bytes(zipped(**{"bank.csv": b"a,b\n1,2\n"}))
    with pytest.raises(DataError, match=r"\['bank.csv'\] and no diabetic_data.csv"):
        read(tmp_path / "other.zip")


def test_a_damaged_archive_is_refused(csv, tmp_path):
    content = zipped(**{encounters.TABLE: csv.read_bytes()})
    path = tmp_path / "damaged.zip"
    path.write_bytes(content.replace(b"Steady", b"Stead?", 1))
    with pytest.raises(DataError, match="damaged"):
        read(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is not a CSV table"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"a,b\n1,2,3\n1\n1,2,3,4,5\n"])
def test_what_is_not_a_table_is_refused(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.csv"):
        read(tmp_path / "x.csv")


def test_absent_and_unknown_columns_are_named(few, tmp_path):
    few.drop(columns=["insulin", "race"]).assign(ssn="1").to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(DataError, match=r"absent \['race', 'insulin'\], unknown \['ssn'\]"):
        read(tmp_path / "x.csv")


def test_a_table_without_a_row_is_refused(few, tmp_path):
    few.iloc[:0].to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(DataError, match="not one row"):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize("uri", ["nowhere://bucket/x.csv", "file:///absent/x.csv"])
def test_a_kind_of_address_that_is_not_read_is_named_with_the_remedy(uri):
    with pytest.raises(DataError, match=f"{uri.partition(':')[0]}://.*HEALTH_PREDICT_DATA"):
        read(uri)


def test_an_address_that_holds_credentials_is_refused_without_repeating_them():
    with pytest.raises(DataError, match="leave them to the environment") as refusal:
        read("s3://AKIAEXAMPLE:verysecret@bucket/x.csv")
    assert "verysecret" not in str(refusal.value)


def test_the_published_archive_is_the_one_the_digest_is_of(archive):
    frame, source = encounters.read(str(archive), rows=1, seed=0)
    assert source.sha256 == encounters.UCI_SHA256
    assert len(frame) == 101_766
    accepted, quarantined = encounters.apply_contract(frame)
    assert (len(accepted), len(quarantined)) == (101_766, 0)
    cohort = encounters.cohort(accepted, "any")
    assert len(cohort) == 99_343
    assert cohort[schema.ENCOUNTER_ID].is_monotonic_increasing


# --- over the network ----------------------------------------------------------------------------


def test_a_table_is_downloaded(csv, few):
    with serving(give(csv.read_bytes())) as url:
        pd.testing.assert_frame_equal(read(url), few)


def test_a_download_that_breaks_off_is_tried_again(csv, few, impatient):
    whole, broken = give(csv.read_bytes()), give(csv.read_bytes()[:900], promised=5_000)
    tries = iter([broken, broken, whole])
    with serving(lambda request: next(tries)(request)) as url:
        pd.testing.assert_frame_equal(read(url), few)


def test_half_a_download_is_never_taken_for_the_table(csv, impatient):
    with (
        serving(give(csv.read_bytes()[:900], promised=5_000)) as url,
        pytest.raises(DataError, match=f"cannot download {url}.*download it by hand"),
    ):
        read(url)


def test_the_uci_archive_is_never_replaced_by_a_synthetic_cohort(monkeypatch, impatient):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/archive.zip"
        monkeypatch.setattr(encounters, "UCI_ARCHIVE", url)
        with pytest.raises(DataError, match=f"cannot download {url}"):
            encounters.read("uci", rows=100, seed=0)


def test_a_uci_archive_with_another_digest_is_refused(csv, monkeypatch):
    content = zipped(**{encounters.TABLE: csv.read_bytes()})
    with serving(give(content)) as url:
        monkeypatch.setattr(encounters, "UCI_ARCHIVE", url)
        with pytest.raises(DataError, match=f"expected {encounters.UCI_SHA256}"):
            encounters.read("uci", rows=100, seed=0)


def test_a_table_is_read_from_s3(bucket, csv, few):
    open_store(f"s3://{bucket}/in").write("table.csv", csv.read_bytes())
    frame, source = encounters.read(f"s3://{bucket}/in/table.csv", rows=1, seed=0)
    pd.testing.assert_frame_equal(frame, few)
    assert source.sha256 == hashlib.sha256(csv.read_bytes()).hexdigest()


def test_an_s3_object_that_is_not_there_is_named(bucket):
    with pytest.raises(DataError, match=rf"cannot read s3://{bucket}/in/absent\.csv"):
        read(f"s3://{bucket}/in/absent.csv")


# --- the contract --------------------------------------------------------------------------------


def test_whole_rows_are_accepted_and_typed(few):
    accepted, quarantined = encounters.apply_contract(few)
    assert (len(accepted), len(quarantined)) == (ROWS, 0)
    kinds = {column: str(kind) for column, kind in accepted.dtypes.items()}
    assert {kinds[c] for c in schema.IDENTIFIERS} == {"int64"}
    assert {kinds[c] for c in (*schema.CODES, *schema.COUNTS)} == {"int32"}
    texts = (*schema.CLOSED, *schema.OPEN, schema.OUTCOME)
    assert {kinds[c] for c in texts} == {"object"}
    pd.testing.assert_frame_equal(as_it_came(accepted).astype(str).astype(object), few)


@pytest.mark.parametrize("value", ["0", "15", "-1", "2.5", "", "abc", "inf", "nan", "1_0", None])
def test_a_stay_that_is_no_whole_number_of_days_is_quarantined(few, value):
    _, reason = contract_of(few, time_in_hospital=value)
    assert reason == f"time_in_hospital: {value!r} is not a whole number from 1 to 14"


@pytest.mark.parametrize("column", schema.COUNTS)
def test_a_count_beyond_its_range_is_quarantined(few, column):
    low, high = schema.COUNTS[column]
    for value in (low - 1, high + 1):
        assert contract_of(few, **{column: str(value)})[1].startswith(f"{column}: '{value}' is not")


@pytest.mark.parametrize("value", ["0", "1000", "x", "7.5"])
@pytest.mark.parametrize("column", schema.CODES)
def test_a_code_that_is_no_code_is_quarantined(few, column, value):
    _, reason = contract_of(few, **{column: value})
    assert reason == f"{column}: {value!r} is not a whole number from 1 to 999"


@pytest.mark.parametrize("column", [*schema.CLOSED, schema.OUTCOME])
def test_a_level_outside_a_closed_vocabulary_is_quarantined(few, column):
    _, reason = contract_of(few, **{column: "Sideways"})
    assert reason.startswith(f"{column}: 'Sideways' is not one of ")


@pytest.mark.parametrize("column", schema.OPEN)
def test_a_text_that_is_empty_or_a_novel_is_quarantined(few, column):
    for text in ("", "x" * 81):
        _, reason = contract_of(few, **{column: text})
        assert reason == f"{column}: a text of {len(text)} characters, allowed are 1 to 80"


@pytest.mark.parametrize("column", [*schema.OPEN, *schema.CLOSED, schema.OUTCOME])
def test_a_cell_without_a_text_is_quarantined(few, column):
    assert contract_of(few, **{column: None})[1].startswith(f"{column}: ")


def test_a_new_level_of_an_open_vocabulary_is_accepted(few):
    few.loc[few.index[3], list(schema.OPEN)] = "Never seen"
    assert len(encounters.apply_contract(few)[0]) == ROWS


@pytest.mark.parametrize("value", ["-987654321", "98765432.1", "9876-54321", "9" * 17, "9" * 25])
@pytest.mark.parametrize("column", schema.IDENTIFIERS)
def test_a_broken_identifier_is_quarantined_and_not_repeated(few, column, value):
    _, reason = contract_of(few, **{column: value})
    assert reason == f"{column}: not a whole number from 1 to 2^53"


def test_the_second_of_two_equal_encounters_is_quarantined(few):
    accepted, reason = contract_of(few, encounter_id=few["encounter_id"].iloc[3])
    assert reason == "encounter_id: seen before"
    assert accepted["encounter_id"].iloc[3] == int(few["encounter_id"].iloc[3])


def test_a_change_of_drugs_without_a_drug_is_quarantined(few):
    _, reason = contract_of(few, change="Ch", diabetesMed="No")
    assert reason == "a drug was changed though none was given"


def test_a_row_that_was_cut_off_is_quarantined(csv):
    lines = csv.read_text().splitlines()
    lines[5] = ",".join(lines[5].split(",")[:10])
    csv.write_text("\n".join(lines))
    accepted, quarantined = encounters.apply_contract(read(csv))
    assert (len(accepted), len(quarantined)) == (ROWS - 1, 1)


def test_accepted_and_quarantined_are_all_rows_each_once(few):
    few.loc[few.index[2], ["gender", "age"]] = ["X", "Y"]
    few.loc[few.index[5], "encounter_id"] = "abc"
    few.loc[few.index[6], "encounter_id"] = "abd"
    few.loc[few.index[9], "encounter_id"] = few["encounter_id"].iloc[8]
    few.loc[few.index[30], ["change", "diabetesMed", "race"]] = ["Ch", "No", ""]
    accepted, quarantined = encounters.apply_contract(few)
    assert len(accepted) + len(quarantined) == ROWS
    assert quarantined["diag_1"].tolist() == few["diag_1"].iloc[[2, 5, 6, 9, 30]].tolist()
    assert quarantined[encounters.REASON].notna().all()
    places = [*accepted[schema.POSITION], *quarantined[schema.POSITION]]
    assert sorted(places) == list(range(ROWS))
    together = pd.concat([as_it_came(accepted).astype(str), as_it_came(quarantined)])
    assert sorted(map(tuple, together.to_numpy())) == sorted(map(tuple, few.to_numpy()))


def test_a_column_that_is_wrong_throughout_quarantines_every_row(few):
    accepted, quarantined = encounters.apply_contract(few.assign(gender="X"))
    assert (len(accepted), len(quarantined)) == (0, ROWS)


def test_no_reason_holds_an_identifier(few):
    broken = few.assign(gender="X", encounter_id=few["encounter_id"] + ".5")
    broken.loc[broken.index[::2], "patient_nbr"] += "x"
    _, quarantined = encounters.apply_contract(broken)
    reasons = " ".join(quarantined[encounters.REASON])
    assert len(quarantined) == ROWS
    assert not any(n in reasons for c in schema.IDENTIFIERS for n in few[c])


def test_a_row_whose_number_is_broken_keeps_its_place_among_its_neighbours(few):
    accepted, quarantined = encounters.apply_contract(few)
    place = dict(zip(accepted["encounter_id"], accepted[schema.POSITION], strict=True))
    broken = few.assign(encounter_id=few["encounter_id"].where(few.index != few.index[12], "?"))
    accepted, quarantined = encounters.apply_contract(broken)
    assert quarantined[schema.POSITION].tolist() == [place[int(few["encounter_id"].iloc[12])]]
    assert dict(zip(accepted["encounter_id"], accepted[schema.POSITION], strict=True)).items() <= (
        place.items()
    )


def test_the_raw_table_is_left_as_it_was(few):
    before = few.copy()
    encounters.apply_contract(few)
    pd.testing.assert_frame_equal(few, before)


# --- cohort and label ----------------------------------------------------------------------------


def test_deaths_and_hospice_leave_the_cohort_and_nobody_else(few):
    codes = list(schema.DISCHARGE_DISPOSITIONS)
    few = few.iloc[: len(codes)].assign(discharge_disposition_id=[str(code) for code in codes])
    cohort = encounters.cohort(encounters.apply_contract(few)[0], "any")
    kept = set(codes) - schema.DEATH_OR_HOSPICE
    assert cohort["discharge_disposition_id"].tolist() == sorted(kept, key=codes.index)
    assert list(cohort.index) == list(range(len(kept)))


@pytest.mark.parametrize(("label", "labels"), [("any", [0, 1, 1]), ("30d", [0, 0, 1])])
def test_the_label_is_the_one_that_was_asked_for(few, label, labels):
    few = few.iloc[:3].assign(readmitted=["NO", ">30", "<30"], discharge_disposition_id="1")
    cohort = encounters.cohort(encounters.apply_contract(few)[0], label)
    assert cohort[schema.LABEL].tolist() == labels


def test_the_cohort_comes_in_encounter_order_whatever_the_order_of_the_file(raw):
    turned = raw.sample(frac=1, random_state=0)
    cohorts = [encounters.cohort(encounters.apply_contract(f)[0], "any") for f in (raw, turned)]
    assert cohorts[0][schema.ENCOUNTER_ID].is_monotonic_increasing
    pd.testing.assert_frame_equal(*cohorts)
