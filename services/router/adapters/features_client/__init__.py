"""The hop to the features service: rows that wait at the same moment are read in one message."""
