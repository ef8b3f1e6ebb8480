"""What the router speaks to: inference replicas, the monitor, the registry's watch, Prometheus."""
