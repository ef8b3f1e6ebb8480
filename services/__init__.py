"""The five Interlock services and the code they share."""

import os

# Before anything imports grpc, which reads it then: its handlers run in each child between fork and exec, beside threads
# that the child does not have. Of 600 children of a process with busy channels 24 ended there by a signal.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # noqa: TID251 - not a setting of ours
