"""The time in an id is that of the clock, also after the clock has been set back."""

from services.router.adapters.prediction_ids import new_prediction_id

DAY_NS = 86_400 * 10**9
NOW_NS = 1_767_225_600 * 10**9


def test_ids_follow_a_clock_that_jumps_and_none_comes_twice() -> None:
    for jumped_ns in (NOW_NS, NOW_NS + DAY_NS, NOW_NS - DAY_NS, NOW_NS):
        ids = [new_prediction_id(clock_ns=lambda at=jumped_ns: at) for _ in range(1_000)]  # type: ignore[misc]
        assert {one.timestamp for one in ids} == {jumped_ns // 10**6}
        assert len(set(ids)) == len(ids)
