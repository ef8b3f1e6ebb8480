"""Between the contract's messages and the domain's values; parsing a request is checking it."""
