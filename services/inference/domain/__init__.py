"""The rules of inference: batching, admission, the life of a version. No transport, no stub, no I/O."""
