"""The short form of the proof: faults under load, through both doors and two routers, and no answer wrong.

`make soak` is the long form.
"""

import pytest

from tests.proof.fleet import new_fleet
from tests.proof.run import prove

pytestmark = pytest.mark.timeout(240)


async def test_no_answer_is_wrong_lost_doubled_or_swapped_whatever_breaks() -> None:
    async with new_fleet() as fleet:
        faults = ("large-tensors", "worker-kill", "worker-freeze", "replica-freeze", "reload", "router-restart")
        verdict, load = await prove(fleet, faults=faults, rate=150)
        assert not verdict.violations, f"{verdict.story()}\n{fleet.story()}"
        assert all(verdict.by_surface[surface.name] for surface in load.surfaces), verdict.by_surface
