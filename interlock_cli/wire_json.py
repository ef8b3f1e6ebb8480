"""Messages of the contract as JSON, under the contract's field names and with defaults, as REST shows them."""

from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def to_json(message: Message) -> dict[str, Any]:
    """Return a message as plain values."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
