"""The monitor's methods, one module for each service of the contract."""
