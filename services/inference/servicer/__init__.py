"""The RPCs of inference: its own API for the router, and the Open Inference Protocol for everybody else."""
