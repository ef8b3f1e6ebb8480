"""The stack on one machine: every service as a supervised child process.

`plan` says what runs, `service` keeps one of them alive, `supervisor` starts and drains all of them, `control` lets
other commands ask.
"""
