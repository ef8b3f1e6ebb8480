"""Protobuf to domain and back: the coalesced stream, the Open Inference Protocol, signatures and states."""
