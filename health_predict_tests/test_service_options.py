"""The environment of the service: read as a whole, or refused by name with the remedy."""

import hashlib

import pytest

from health_predict.serving.options import (
    AUTH,
    BATCH_ROWS,
    CONCURRENCY,
    IMAGE_DIGEST,
    TOKENS,
    UPLOAD_BYTES,
    Options,
    OptionsError,
)

OPEN = {AUTH: "off"}
ONE, OTHER = (hashlib.sha256(token).hexdigest() for token in (b"one", b"other"))


def test_without_tokens_and_without_a_word_nobody_is_served():
    with pytest.raises(OptionsError, match=f"{TOKENS} is empty: .*sha256sum.*{AUTH}=off"):
        Options.of_environment({})


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_a_list_without_a_token_is_no_list(text):
    with pytest.raises(OptionsError, match=f"{TOKENS} is empty"):
        Options.of_environment({TOKENS: text})


def test_authentication_is_off_only_by_the_word_off():
    assert Options.of_environment(OPEN).tokens is None
    assert Options.of_environment({AUTH: "on", TOKENS: ONE}).tokens == {ONE}


@pytest.mark.parametrize("switch", ["", "OFF", "Off", "0", "false", "no", "none", " off"])
def test_whatever_only_looks_like_off_is_refused(switch):
    with pytest.raises(OptionsError, match=f"{AUTH} is .*it takes on or off"):
        Options.of_environment({AUTH: switch, TOKENS: ONE})


def test_off_is_off_whatever_tokens_there_are():
    assert Options.of_environment({**OPEN, TOKENS: ONE}).tokens is None


def test_tokens_are_several_in_either_case_with_blanks_between():
    given = f" {ONE} ,{OTHER.upper()},"
    assert Options.of_environment({TOKENS: given}).tokens == {ONE, OTHER}


@pytest.mark.parametrize(
    "entry", ["s3cret-token", ONE[:-1], ONE + "0", "g" * 64, f"{ONE} {OTHER}", f"sha256:{ONE}"]
)
def test_a_token_in_place_of_its_digest_is_refused_by_place_and_not_repeated(entry):
    with pytest.raises(OptionsError, match=f"entry 2 of {TOKENS} .*digest of the token") as error:
        Options.of_environment({TOKENS: f"{ONE},{entry}"})
    assert entry not in str(error.value)
    assert ONE not in str(error.value)


def test_what_is_not_said_has_a_default():
    options = Options.of_environment(OPEN)
    assert (options.batch_rows, options.upload_bytes) == (10_000, 64 * 2**20)
    assert options.concurrency == 256
    assert options.image_digest is None
    assert Options.of_environment({**OPEN, IMAGE_DIGEST: "", BATCH_ROWS: ""}) == options


def test_what_is_said_counts():
    options = Options.of_environment(
        {
            **OPEN,
            **{BATCH_ROWS: "7", UPLOAD_BYTES: "1024", CONCURRENCY: "2"},
            IMAGE_DIGEST: "sha256:ab",
        }
    )
    assert options == Options(None, 7, 1024, 2, "sha256:ab")


@pytest.mark.parametrize("name", [BATCH_ROWS, UPLOAD_BYTES, CONCURRENCY])
@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e3", "ten", " 5", "1_000", "\u0663"])
def test_a_limit_that_is_no_whole_number_from_1_is_refused_by_name(name, text):
    with pytest.raises(OptionsError, match=f"{name} is .*whole number from 1"):
        Options.of_environment({**OPEN, name: text})


def test_a_service_that_was_not_told_anything_is_closed_to_everybody():
    assert Options(tokens=frozenset()).tokens is not None
