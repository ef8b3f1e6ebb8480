"""Between the wire and the domain: protobuf, JSON and the binary tensor extension, in and out. Parsing is validation."""
