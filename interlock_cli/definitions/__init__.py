"""Definitions of entities and feature views as YAML files: read strictly, told apart line by line."""
