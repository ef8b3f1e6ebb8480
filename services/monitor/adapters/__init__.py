"""What the monitor tells others."""
