"""ModelInfer at first sight: a request read without its parts, and an answer put together from prepared bytes.

A client sends thousands of requests that differ in their id and their values alone. The descriptions of their tensors are
the same bytes each time: who has seen and checked them once needs not take them apart again.
"""

from typing import Any, Final, Generic, TypeVar

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from inference import grpc_service_pb2 as oip_pb

from services.common.chain import parse_message
from services.common.part_count import check_part_count
from services.common.wire_pieces import tag_of, varint

_STRING: Final = FieldDescriptorProto.TYPE_STRING
_BYTES: Final = FieldDescriptorProto.TYPE_BYTES
_ONE: Final = FieldDescriptorProto.LABEL_OPTIONAL
_MANY: Final = FieldDescriptorProto.LABEL_REPEATED
_ID_TAG: Final = tag_of(oip_pb.ModelInferResponse, "id")
_RAW_TAG: Final = tag_of(oip_pb.ModelInferResponse, "raw_output_contents")
_FORMS_LIMIT: Final = 1024
_FORM_LIMIT_BYTES: Final = 4096


def _sketch() -> Any:
    message = DescriptorProto(name="InferSketch")
    for field in oip_pb.ModelInferRequest.DESCRIPTOR.fields:
        kind = _STRING if field.type == field.TYPE_STRING else _BYTES
        message.field.add(name=field.name, number=field.number, type=kind, label=_MANY if field.is_repeated else _ONE)
    pool = DescriptorPool()
    pool.Add(FileDescriptorProto(name="infer_sketch.proto", syntax="proto3", message_type=[message]))
    return GetMessageClass(pool.FindMessageTypeByName(message.name))


InferSketch: Final = _sketch()
"""`inference.ModelInferRequest` with every message in it left as the bytes that it came as."""


_INPUT_PARTS_LIMIT: Final = 1024
"""Fields of one input: parameters, or dimensions one by one; values are a field, or raw."""


def parse_closely(sketch: Any, payload: bytes) -> oip_pb.ModelInferRequest:
    """Return a request whose sketch is known with all its parts; raises InvalidArgument for what is none."""
    for part in (*sketch.inputs, *sketch.outputs):
        check_part_count(part, _INPUT_PARTS_LIMIT)
    request: oip_pb.ModelInferRequest = parse_message(oip_pb.ModelInferRequest, payload)
    return request


FormT = TypeVar("FormT")


class Forms(Generic[FormT]):
    """What is known of requests by how they describe their tensors, from earlier ones with the same description.

    Requests that say more than that, by parameters or wanted outputs, are never known.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], FormT] = {}

    def find(self, sketch: Any) -> FormT | None:
        """Return what was learned; None says nothing about right or wrong."""
        return None if sketch.parameters or sketch.outputs else self._known.get(_description(sketch))

    def learn(self, sketch: Any, form: FormT) -> None:
        """Remember what a request with which nothing is wrong means."""
        if sketch.parameters or sketch.outputs or sum(map(len, sketch.inputs)) > _FORM_LIMIT_BYTES:
            return
        if len(self._known) >= _FORMS_LIMIT:
            self._known.clear()
        self._known[_description(sketch)] = form


def _description(sketch: Any) -> tuple[Any, ...]:
    return (sketch.model_name, sketch.model_version, *sketch.inputs)


def answer_tail(ident: str, contents: list[bytes]) -> bytes:
    """Return the fields of a ModelInferResponse that no two answers share: id and raw output contents."""
    parts: list[bytes] = []
    if ident:
        text = ident.encode()
        parts += (_ID_TAG, varint(len(text)), text)
    for data in contents:
        parts += (_RAW_TAG, varint(len(data)), data)
    return b"".join(parts)
