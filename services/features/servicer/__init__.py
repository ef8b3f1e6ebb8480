"""One module for each gRPC service of features."""
