"""The contract as descriptors: what Envoy loads, read without importing any stub."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from grpc_health.v1 import health_pb2

ROOT = Path(__file__).resolve().parents[2]
OURS = ("interlock", "inference")


@dataclass(frozen=True)
class Rpc:
    """One RPC of ours: its package, its service's full name and its descriptor."""

    package: str
    service: str
    method: MethodDescriptorProto

    @property
    def name(self) -> str:
        return f"{self.service}/{self.method.name}"


@cache
def descriptor_set() -> FileDescriptorSet:
    """The committed set that Envoy loads."""
    return FileDescriptorSet.FromString((ROOT / "gen" / "interlock.binpb").read_bytes())


def our_files() -> list[FileDescriptorProto]:
    return [file for file in descriptor_set().file if file.package.split(".")[0] in OURS]


def our_rpcs() -> list[Rpc]:
    return [
        Rpc(file.package, f"{file.package}.{service.name}", method)
        for file in our_files()
        for service in file.service
        for method in service.method
    ]


@cache
def messages() -> dict[str, DescriptorProto]:
    """Every message of ours by its full name, with the leading dot that descriptors write."""
    return {
        f".{scope}.{message.name}": message
        for file in our_files()
        for scope, message in _walk(file.package, file.message_type)
    }


@cache
def known_names() -> dict[str, str]:
    """The package of every name that a page may mention: messages, fields, enums, their values, services and RPCs."""
    health = FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(health)
    return {name: file.package for file in [*our_files(), health] for name in _names(file)}


def _walk(scope: str, found: Sequence[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    for message in found:
        yield scope, message
        yield from _walk(f"{scope}.{message.name}", message.nested_type)


def _names(file: FileDescriptorProto) -> Iterator[str]:
    for service in file.service:
        yield f"{file.package}.{service.name}"
        yield from (f"{file.package}.{service.name}/{method.name}" for method in service.method)
    yield from _enum_names(file.package, file.enum_type)
    for scope, message in _walk(file.package, file.message_type):
        name = f"{scope}.{message.name}"
        yield name
        yield from (f"{name}.{field.name}" for field in message.field)
        yield from _enum_names(name, message.enum_type)


def _enum_names(scope: str, enums: Sequence[EnumDescriptorProto]) -> Iterator[str]:
    for enum in enums:
        yield f"{scope}.{enum.name}"
        yield from (f"{scope}.{value.name}" for value in enum.value)
