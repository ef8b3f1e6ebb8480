"""What users of Interlock import: client, ONNX export, baselines and golden rows.

The package itself imports nothing, so that a part of it can be used without the libraries of the others.
"""
