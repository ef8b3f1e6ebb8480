"""The REST paths of the contract, read from its `google.api.http` annotations: nobody writes a path twice."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule as HttpRuleProto
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto

HTTP_BODY: Final = "google.api.HttpBody"
# What needs no percent-encoding in a path. A hot route takes nothing else, so nobody has to decode there.
PLAIN_SEGMENT: Final = "[A-Za-z0-9._~-]+"
ANY_SEGMENT: Final = "[^/]+"

# The published stub types an extension as a plain descriptor.
_HTTP: Final[Any] = annotations_pb2.http
_TOKEN: Final = re.compile(r"\{(?P<field>[a-zA-Z0-9_.]+)(?:=(?P<pattern>[^}]+))?\}|(?P<text>[^{}]+)")


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """One `google.api.http` path: `/v2/models/{model_name}/infer`, `/v1/{name=models/*}:verb`."""

    text: str

    def __post_init__(self) -> None:
        if not self.text.startswith("/") or "".join(token.group() for token in _TOKEN.finditer(self.text)) != self.text:
            raise ValueError(f'path template: want "/literal/{{field}}", got "{self.text}"')

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the path fills, in its order."""
        return tuple(token["field"] for token in _TOKEN.finditer(self.text) if token["field"])

    @property
    def head(self) -> str:
        """The literal start, up to the first wildcard and without a verb: `/v1/models`; whole segments only."""
        expanded = "".join(token["text"] or token["pattern"] or "*" for token in _TOKEN.finditer(self.text))
        segments: list[str] = []
        for segment in expanded.split("/")[1:]:
            if "*" in segment:
                break
            segments.append(segment.split(":")[0])
        return "/" + "/".join(segments)

    def regex(self, segment: str = ANY_SEGMENT) -> str:
        """Return the expression (RE2 and Python) that the whole path must match, one group per field."""
        parts = (
            f"({_globbed(token['pattern'] or '*', segment)})" if token["field"] else _globbed(token["text"], segment)
            for token in _TOKEN.finditer(self.text)
        )
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class HttpRule:
    """One REST path of one RPC; an RPC with additional bindings has several."""

    service: str
    method: str
    verb: str
    template: PathTemplate
    body: str
    """The request field that takes the body, `*` for the whole request, empty for none."""
    client_streaming: bool
    server_streaming: bool
    twin: bool
    """The RPC answers with a google.api.HttpBody: the handler writes bodies and errors itself."""

    @property
    def grpc_path(self) -> str:
        """The HTTP/2 path of the RPC behind it."""
        return f"/{self.service}/{self.method}"


def rules_of_service(name: str) -> tuple[HttpRule, ...]:
    """Return the REST paths of a service in the default descriptor pool, in the order of the contract."""
    descriptor = descriptor_pool.Default().FindServiceByName(name)
    proto = ServiceDescriptorProto()
    descriptor.CopyToProto(proto)
    return tuple(_service_rules(name, proto))


def services_of(descriptors: FileDescriptorSet) -> dict[str, ServiceDescriptorProto]:
    """Return every service of a descriptor set by its full name."""
    return {
        f"{file.package}.{service.name}" if file.package else service.name: service
        for file in descriptors.file
        for service in file.service
    }


def rules_of_set(descriptors: FileDescriptorSet) -> tuple[HttpRule, ...]:
    """Return the REST paths of every service of a descriptor set."""
    services = services_of(descriptors).items()
    return tuple(rule for name, service in services for rule in _service_rules(name, service))


def _service_rules(name: str, service: ServiceDescriptorProto) -> Iterator[HttpRule]:
    for method in service.method:
        if not method.options.HasExtension(_HTTP):
            continue
        rule: HttpRuleProto = method.options.Extensions[_HTTP]
        for binding in (rule, *rule.additional_bindings):
            yield _rule(name, method, binding)


def _rule(service: str, method: MethodDescriptorProto, binding: HttpRuleProto) -> HttpRule:
    verb, path = _verb_and_path(binding)
    return HttpRule(
        service=service,
        method=method.name,
        verb=verb,
        template=PathTemplate(path),
        body=binding.body,
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        twin=method.output_type == f".{HTTP_BODY}",
    )


def _verb_and_path(binding: HttpRuleProto) -> tuple[str, str]:
    pattern = binding.WhichOneof("pattern")
    if pattern is None:
        raise ValueError("google.api.http annotation: want a path, got none")
    if pattern == "custom":
        return binding.custom.kind, binding.custom.path
    return pattern.upper(), getattr(binding, pattern)


def _globbed(pattern: str, segment: str) -> str:
    return "".join(_glob_parts(re.split(r"(\*\*|\*)", pattern), segment))


def _glob_parts(parts: Iterable[str], segment: str) -> Iterator[str]:
    for part in parts:
        if part == "**":
            yield ".+"
        else:
            yield segment if part == "*" else re.escape(part)
