"""Rules of the contract that no linter knows, checked on the descriptors."""

import re
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, MethodOptions

from tests.contract.descriptors import Rpc, descriptor_set, messages, our_files, our_rpcs

# Mutations that need no idempotency key, each with its reason.
WITHOUT_REQUEST_ID = {
    "interlock.registry.v1.ControlService/ReportReplica": "a report replaces the one before",
}

# Its type stub says FieldDescriptor, which no extension method takes.
HTTP_RULE: Any = annotations_pb2.http
RPCS = our_rpcs()


def field_names(message: DescriptorProto) -> set[str]:
    return {field.name for field in message.field}


def is_foreign_shape(rpc: Rpc) -> bool:
    """Whether somebody else fixed the shape: the Open Inference Protocol, or HTTP."""
    return rpc.package == "inference" or rpc.service.endswith("HttpService")


def test_there_is_a_contract() -> None:
    assert {rpc.package for rpc in RPCS} >= {
        "inference",
        "interlock.features.v1",
        "interlock.router.v1",
        "interlock.registry.v1",
    }


def test_services_stand_in_files_that_get_service_stubs() -> None:
    assert [file.name for file in our_files() if file.service and not file.name.endswith("_service.proto")] == []


def test_envoy_finds_the_types_of_error_details() -> None:
    """Without them every transcoded error has an empty body."""
    assert "google/rpc/error_details.proto" in {file.name for file in descriptor_set().file}


def test_a_call_that_can_be_repeated_says_whether_it_may() -> None:
    """Our client retries what is marked and nothing else; a client's stream cannot be sent again by a channel."""
    silent = [
        r.name for r in RPCS if not r.method.client_streaming and not r.method.options.HasField("idempotency_level")
    ]
    assert silent == []


def test_a_mutation_takes_an_idempotency_key() -> None:
    mutations = [
        rpc
        for rpc in RPCS
        if rpc.method.options.idempotency_level != MethodOptions.NO_SIDE_EFFECTS
        and not rpc.method.client_streaming
        and not is_foreign_shape(rpc)
    ]
    without = {rpc.name for rpc in mutations if "request_id" not in field_names(messages()[rpc.method.input_type])}
    assert without == set(WITHOUT_REQUEST_ID)


def is_paginated(rpc: Rpc) -> bool:
    """Whether a page is asked for and given: items in field 1, then the token of the next page."""
    answer = messages()[rpc.method.output_type]
    items = answer.field[0]
    return (
        field_names(messages()[rpc.method.input_type]) >= {"page_size", "page_token"}
        and "next_page_token" in field_names(answer)
        and (items.number, items.label) == (1, FieldDescriptorProto.LABEL_REPEATED)
    )


def test_every_list_is_paginated() -> None:
    lists = [rpc for rpc in RPCS if rpc.method.name.startswith("List")]
    assert len(lists) > 10
    assert [rpc.name for rpc in lists if not is_paginated(rpc)] == []


def test_no_rest_path_leads_to_what_is_not_there() -> None:
    unstable = [rpc for rpc in RPCS if rpc.package.endswith("v1alpha1")]
    assert len(unstable) > 20
    assert [rpc.name for rpc in unstable if rpc.method.options.HasExtension(HTTP_RULE)] == []


def test_rest_paths_are_unique() -> None:
    seen: dict[tuple[str, str], str] = {}
    for rpc in RPCS:
        if not rpc.method.options.HasExtension(HTTP_RULE):
            continue
        rule = rpc.method.options.Extensions[HTTP_RULE]
        for binding in [rule, *rule.additional_bindings]:
            verb = str(binding.WhichOneof("pattern"))
            # Two paths that differ in the names of their variables only are one path to the transcoder.
            path = re.sub(r"\{[^}=]*\}", "*", getattr(binding, verb))
            assert seen.setdefault((verb, path), rpc.name) == rpc.name
    assert ("post", "/v1/predict") in seen


def test_reasons_fit_into_an_error() -> None:
    """A reason is the value without its enum's prefix: at most 63 characters, UPPER_SNAKE."""
    reasons = [
        value.name.split("ERROR_REASON_", 1)[1]
        for file in our_files()
        for enum in file.enum_type
        if enum.name.endswith("ErrorReason")
        for value in enum.value
    ]
    assert len(reasons) > 30
    assert [reason for reason in reasons if not re.fullmatch(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", reason)] == []
