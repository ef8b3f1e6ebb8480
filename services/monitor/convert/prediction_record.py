"""Logged predictions as records of the contract, and what is asked of the log."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from interlock.monitor.v1 import prediction_log_service_pb2 as pb
from interlock.router.v1 import prediction_pb2
from interlock.types.v1 import feature_value_pb2 as value_pb

from services.common.errors import INVALID_FIELD, Violation, echo
from services.common.names import VERSION, id_violation
from services.common.pagination import parse_page
from services.monitor.convert.feedback import id_from_text
from services.monitor.convert.time import duration_to_proto, time_from_proto, time_to_proto
from services.monitor.convert.value import scalar_to_proto
from services.monitor.domain.failure import InvalidRequest, refuse
from services.monitor.domain.log_page import Feedback, PageQuestion
from services.monitor.domain.log_question import LogQuestion
from services.monitor.domain.log_table import FEATURE_PREFIX
