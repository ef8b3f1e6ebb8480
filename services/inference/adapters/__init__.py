"""What inference needs of the outside: processes, disk, the registry, telemetry."""
