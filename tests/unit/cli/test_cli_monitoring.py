"""Commands about how versions are doing: options in, tables out."""

from pathlib import Path

import pytest
from interlock.monitor.v1 import monitoring_policy_pb2 as pb

from interlock_cli.commands.monitoring import amount, scope_of
from interlock_cli.commands.policy import policy_rows, read_policy
from interlock_cli.errors import CommandFailed

NOTHING = {"since": "", "start": "", "end": "", "slice_name": "", "variant": "", "environment": "production"}


def test_a_scope_is_a_stretch_of_time() -> None:
    scope = scope_of(**{**NOTHING, "start": "2026-03-01T12:00", "end": "2026-03-01T15:00+01:00"})
    assert scope.end_time.seconds - scope.start_time.seconds == 2 * 3600
    assert not scope_of(**NOTHING).HasField("start_time")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"since": "1h", "start": "2026-03-01"}, "either --since or --start"),
        ({"since": "soon"}, "--since: want a duration"),
        ({"end": "noon"}, "--end: want a time such as"),
    ],
)
def test_times_that_are_none_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(CommandFailed, match=message):
        scope_of(**{**NOTHING, **options})


def test_a_policy_file_has_plain_values_and_durations(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "window_duration: 15m\n"
        "slices:\n- {name: big, feature: amount, minimum: 100}\n- {name: home, feature: country, values: [NO, 7, true]}\n"
        "fairness_groups:\n- {feature: member, reference_value: true}\n"
    )
    policy = read_policy(file)
    assert policy.window_duration.seconds == 900
    rows = dict(policy_rows(policy))
    assert rows["slice big"] == "100 <= amount"
    assert rows["slice home"] == "country is NO or 7 or True"
    assert rows["groups of member"] == "from 100 predictions on against True"
    file.write_text("colour: red\n")
    with pytest.raises(CommandFailed, match='no field named "colour"'):
        read_policy(file)


def test_figures_are_short() -> None:
    assert [amount(value) for value in (0.123456, 12_345.6, 0.0000012)] == ["0.1235", "12,346", "1.2e-06"]
    assert isinstance(next(iter(policy_rows(pb.MonitoringPolicy())))[1], str)
