"""What the monitor knows of predictions, without transport or store."""
