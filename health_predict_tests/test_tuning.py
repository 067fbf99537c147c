"""The search on Ray: nothing stays behind, and a trial that fails is named.

How it fares on a cluster is in `test_ray_cluster`.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from health_predict.models import Sample
from health_predict.search import SearchData, SearchError, SearchResult
from health_predict.tuning import search

TRIALS, SEED = 4, 7


def data_of_two_features(*, gap: bool = False, copies: int = 1) -> SearchData:
    """Returns two features that tell only together: a tree learns it, a line cannot.

    Args:
        gap: whether a value is missing, which xgboost takes and a logistic regression does not.
        copies: how often each row is repeated, where a fit shall take its time.
    """
    x = np.random.default_rng(0).normal(size=(900, 4)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    if gap:
        x[3, 0] = np.nan
    train = Sample(np.tile(x[:600], (copies, 1)), np.tile(y[:600], copies))
    return SearchData(train, Sample(x[600:], y[600:]))


@pytest.fixture(scope="module")
def data() -> SearchData:
    return data_of_two_features()


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """A folder of this test's own for temporary files, its path short as Ray's sockets need it."""
    before, folder = tempfile.tempdir, Path(tempfile.mkdtemp(prefix="t"))
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def found(data, temporary, said) -> SearchResult:
    before = rays()
    result = search(data, trials=TRIALS, seed=SEED, say=said.append)
    assert rays() == before  # the token of this Ray, above all, is not for the next
    return result


def rays() -> dict[str, str]:
    """Returns what Ray reads of the environment."""
    names = ("RAY_", "TUNE_", "HOME")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def left_behind(temporary: Path) -> list[str]:
    """Returns the folders of searches that are still there, and Ray's processes in them."""
    folders = [path.name for path in temporary.glob("hp-*")]
    processes = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if f"{temporary}/hp-ray-" in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            processes.append(command)
    return folders + processes


def test_the_winner_learned_what_only_trees_can(found):
    assert found.winner.fate == "full"
    assert found.winner.family != "logistic_regression"
    assert found.winner.auc == max(t.auc for t in found.trials if t.fate == "full") > 0.9


def test_a_search_says_how_long_it_took_and_how_long_it_waited_to_begin(found):
    assert 0 < found.start_seconds < found.seconds
    assert all(0 < trial.seconds < found.seconds for trial in found.trials)


def test_each_trial_is_told_as_it_ends(found, said):
    assert sorted(said) == sorted(trial.words for trial in found.trials)


def test_no_process_and_no_file_of_a_search_stays(found, temporary):
    assert left_behind(temporary) == []
    assert not Path(os.environ["HOME"], "ray_bootstrap_config.yaml").exists()


def test_a_trial_that_fails_fails_the_search_by_name_and_leaves_nothing(temporary):
    families = ["logistic_regression", "xgboost"]
    with pytest.raises(SearchError, match="1 of 2 trials failed, first logistic_regression with "):
        search(data_of_two_features(gap=True), trials=2, seed=SEED, families=families)
    assert left_behind(temporary) == []


def test_a_search_without_time_is_an_error_that_names_the_budget(data, temporary):
    with pytest.raises(SearchError, match="raise HEALTH_PREDICT_SEARCH_SECONDS"):
        search(data, trials=3, seed=SEED, seconds=0)
    assert left_behind(temporary) == []


@pytest.mark.parametrize(
    "address", ["head.example", "http://127.0.0.1:8265", "ray://127.0.0.1", "ray://127.0.0.1:x"]
)
def test_an_address_that_is_none_of_a_cluster_is_refused(data, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        SearchError, match=f"RAY_ADDRESS={address} is no address.* ray://HOST:10001"
    ):
        search(data, trials=3, seed=SEED)


@pytest.mark.parametrize("form", ["ray://127.0.0.1:{}", "127.0.0.1:{}"])
@pytest.mark.parametrize("listening", [False, True])
def test_where_no_cluster_answers_the_address_and_the_remedy_are_named(
    data, monkeypatch, form, listening
):
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if listening:
            mute.listen()
        address = form.format(mute.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(SearchError, match=f"RAY_ADDRESS={address}: .*leave RAY_ADDRESS empty"):
            search(data, trials=3, seed=SEED)
