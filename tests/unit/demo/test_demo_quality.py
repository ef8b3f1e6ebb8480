"""AUC and Brier scores, beside what a constant would have scored."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from interlock_cli.demo.quality import judge

ROWS = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]), st.integers(0, 1)), min_size=2, max_size=40)


@given(ROWS.filter(lambda rows: len({late for _, late in rows}) == 2))
def test_scores_are_those_of_scikit_learn(rows: list[tuple[float, int]]) -> None:
    probability, late = (np.array(column) for column in zip(*rows, strict=True))
    quality = judge(probability, late, prior=0.2)
    assert quality.auc == pytest.approx(roc_auc_score(late, probability))
    assert quality.brier == pytest.approx(brier_score_loss(late, probability))
    assert quality.prior_brier == pytest.approx(brier_score_loss(late, np.full(len(late), 0.2)))


def test_answering_the_share_itself_scores_as_hindsight() -> None:
    quality = judge(np.full(4, 0.25), np.array([0, 0, 0, 1]), prior=0.25)
    assert (quality.auc, quality.brier, quality.hindsight_brier, quality.prior_brier) == (0.5, 0.1875, 0.1875, 0.1875)


def test_perfect_probabilities() -> None:
    quality = judge(np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1]), prior=0.5)
    assert (quality.flight_count, quality.auc, quality.brier, quality.prior_brier) == (3, 1.0, 0.0, 0.25)


@pytest.mark.parametrize("late", [[0, 0], [1, 1]])
def test_flights_that_all_ended_alike_have_no_auc(late: list[int]) -> None:
    assert math.isnan(judge(np.array([0.1, 0.2]), np.array(late), prior=0.5).auc)
