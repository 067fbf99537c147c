"""A real search, small: the weak stop early, the winner ran in full, nothing stays behind."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from sklearn.metrics import roc_auc_score

from health_predict.models import STAGES, candidates, fit
from health_predict.tuning import SearchData, SearchError, SearchResult, search

TRIALS, SEED = 6, 7


@pytest.fixture(scope="module")
def data() -> SearchData:
    """Two features that tell only together: trees learn it, a logistic regression cannot."""
    x = np.random.default_rng(0).normal(size=(900, 4)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    return SearchData(x[:600], y[:600], x[600:], y[600:])


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """A folder of this test's own for temporary files, its path short as Ray's sockets need it."""
    before, folder = tempfile.tempdir, Path(tempfile.mkdtemp(prefix="t"))
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(data, temporary) -> SearchResult:
    return search(data, trials=TRIALS, seed=SEED)


def left_behind(temporary: Path) -> list[str]:
    """Returns the folders of searches that are still there, and Ray's processes in them."""
    folders = [path.name for path in temporary.glob("hp-ray-*")]
    processes = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if f"{temporary}/hp-ray-" in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            processes.append(command)
    return folders + processes


def test_the_candidates_are_those_of_the_seed(found):
    tried = [(trial.family, trial.params) for trial in found.trials]
    assert tried == [(c.family, c.params) for c in candidates(TRIALS, SEED)]
    assert found.seed == SEED


def test_weak_candidates_are_stopped_early(found):
    stopped = [trial for trial in found.trials if trial.stopped_early]
    assert {"logistic_regression"} <= {trial.family for trial in stopped}
    assert all(0 < len(trial.curve) < STAGES for trial in stopped)


def test_the_winner_ran_all_stages_and_is_the_best_of_those_that_did(found):
    full = [trial for trial in found.trials if not trial.stopped_early]
    assert all(len(trial.curve) == STAGES for trial in full)
    assert found.winner in full
    assert found.winner.auc == max(trial.auc for trial in full) > 0.9


def test_the_winners_curve_ends_where_its_refit_stands(found, data):
    assert found.candidate == candidates(TRIALS, SEED)[found.trials.index(found.winner)]
    model = fit(found.candidate, data.x_train, data.y_train, SEED)
    scores = model.predict_proba(data.x_validation)[:, 1]
    assert roc_auc_score(data.y_validation, scores) == pytest.approx(found.winner.auc, abs=1e-9)


def test_a_search_says_how_long_it_took_and_how_long_it_waited_to_begin(found):
    assert 0 < found.start_seconds < found.seconds
    assert all(0 < trial.seconds < found.seconds for trial in found.trials)


def test_no_process_and_no_file_of_a_search_stays(found, temporary):
    assert left_behind(temporary) == []


def test_a_trial_that_fails_fails_the_search_by_name_and_leaves_nothing(data, temporary):
    with_a_gap = data.x_train.copy()
    with_a_gap[3, 0] = np.nan  # xgboost takes a missing value, a logistic regression does not
    broken = SearchData(with_a_gap, data.y_train, data.x_validation, data.y_validation)
    culprits = [c for c in candidates(3, SEED) if c.family != "xgboost"]
    with pytest.raises(SearchError) as error:
        search(broken, trials=3, seed=SEED)
    words = str(error.value)
    assert "of 3 trials failed" in words
    assert any(f"first {c.family} with {c.params}: " in words for c in culprits)
    assert left_behind(temporary) == []
