"""The five Interlock services and the code they share."""
