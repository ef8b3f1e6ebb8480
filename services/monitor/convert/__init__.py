"""Between the contract and the domain; reading a message checks it."""
