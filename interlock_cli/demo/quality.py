"""How good predicted probabilities were."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd


@dataclass(frozen=True, slots=True)
class Quality:
    """AUC and Brier score of some flights, beside what one constant would have scored.

    `prior_brier` is the score of the share of late flights among the training flights: the forecast of somebody who knows
    the past and does not look at the flight. `hindsight_brier` is the score of the share among the judged flights
    themselves: the best that any constant could have done, though nobody could know it.
    """

    flight_count: int
    late_share: float
    auc: float
    brier: float
    prior_brier: float
    hindsight_brier: float


def judge(probability: npt.NDArray[np.float64], late: npt.NDArray[np.int64], prior: float) -> Quality:
    """Compares probabilities of being late with what happened (1 = late); `prior` is the training flights' share."""
    late_share = float(late.mean())
    return Quality(
        flight_count=len(late),
        late_share=late_share,
        auc=_auc(probability, late),
        brier=float(np.mean((probability - late) ** 2)),
        prior_brier=float(np.mean((prior - late) ** 2)),
        hindsight_brier=late_share * (1 - late_share),
    )


def _auc(probability: npt.NDArray[np.float64], late: npt.NDArray[np.int64]) -> float:
    """Gives the chance that a late flight has a higher probability than one on time, a tie counting half.

    NaN when all flights are late or none is.
    """
    late_count = int(late.sum())
    pair_count = late_count * (len(late) - late_count)
    if pair_count == 0:
        return float("nan")
    ranks = pd.Series(probability).rank().to_numpy(dtype=np.float64)
    return float((ranks[late == 1].sum() - late_count * (late_count + 1) / 2) / pair_count)
