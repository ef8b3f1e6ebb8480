"""What all five services share: the call chain, the doors, channels, settings and telemetry.

Nothing here knows a service. Each module is named for what it does.
"""
