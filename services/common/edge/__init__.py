"""The edge: one Envoy configuration for the local stack and for deployment, and the process that runs it.

With `door = envoy` the Envoy carries the service's own Python and is its public port; with `door = grpcio` it stands
in front of a service that is complete by itself. Nothing here imports the module that embeds Python.
"""
