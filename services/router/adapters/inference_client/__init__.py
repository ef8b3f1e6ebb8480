"""The hop to inference: replicas of each pool, one coalescing stream per replica and version."""
