"""REST paths read from annotations, and the route table made of them."""

import re
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from services.common.edge.config import origin_regex
from services.common.edge.routes import PublicArea, RouteConflict, RouteKind, route_table
from services.common.http_rules import PLAIN_SEGMENT, PathTemplate, rules_of_set

HTTP: Any = annotations_pb2.http


def contract(**paths: str) -> FileDescriptorSet:
    """A descriptor set with one service per keyword, its only RPC bound to the path."""
    descriptors = FileDescriptorSet()
    file = descriptors.file.add(name="t.proto", package="t")
    for name, path in paths.items():
        method = file.service.add(name=name).method.add(
            name="Call", input_type=".t.X", output_type=".google.api.HttpBody"
        )
        method.options.Extensions[HTTP].post = path
    return descriptors


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("/v1/predict", "/v1/predict", ()),
        ("/v2/models/{model}/infer", "/v2/models/a.b-1/infer", ("a.b-1",)),
        ("/v1/{name=models/*/versions/*}", "/v1/models/a/versions/3", ("models/a/versions/3",)),
        ("/v1/{parent=models/*}/versions", "/v1/models/a/versions", ("models/a",)),
        ("/v1/{name=files/**}:read", "/v1/files/a/b:read", ("files/a/b",)),
    ],
)
def test_a_template_matches_its_paths(template: str, path: str, values: tuple[str, ...]) -> None:
    match = re.fullmatch(PathTemplate(template).regex(), path)
    assert match is not None
    assert match.groups() == values


@pytest.mark.parametrize(
    "path", ["/v2/models//infer", "/v2/models/a/b/infer", "/v2/models/a%20b/infer", "/v2/models/é/infer"]
)
def test_a_hot_template_takes_plain_names_only(path: str) -> None:
    assert re.fullmatch(PathTemplate("/v2/models/{model}/infer").regex(PLAIN_SEGMENT), path) is None


def test_a_dot_in_a_template_is_a_dot() -> None:
    assert re.fullmatch(PathTemplate("/v1/a.b").regex(), "/v1/axb") is None


@pytest.mark.parametrize("text", ["v1/x", "", "/v1/{", "/v1/{a"])
def test_a_broken_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="path template"):
        PathTemplate(text)


def test_rules_know_their_twin_and_verb() -> None:
    (rule,) = rules_of_set(contract(A="/v1/a"))
    assert (rule.verb, rule.grpc_path, rule.twin) == ("POST", "/t.A/Call", True)


def test_two_areas_with_one_path_are_a_conflict() -> None:
    descriptors = contract(A="/v1/models/{m}/a", B="/v1/models/{m}/b")
    with pytest.raises(RouteConflict, match="/v1/models is claimed by a, b"):
        route_table(descriptors, [PublicArea("a", ("t.A",)), PublicArea("b", ("t.B",))])


def test_a_service_in_no_descriptor_is_named() -> None:
    with pytest.raises(RouteConflict, match=r"t\.Nothing"):
        route_table(contract(A="/v1/a"), [PublicArea("a", ("t.Nothing",))])


def test_hot_routes_come_first_and_the_default_last() -> None:
    table = route_table(
        contract(A="/v1/a", B="/v1/b"), [PublicArea("a", ("t.A",)), PublicArea("b", ("t.B",))], frozenset({"t.A/Call"})
    )
    kinds = [(route.kind, route.grpc_only) for route in table[:3]]
    assert kinds == [(RouteKind.HOT_GRPC, True), (RouteKind.HOT_GRPC, False), (RouteKind.HOT_REST, False)]
    assert (table[-1].match, table[-1].cluster) == (("prefix", "/"), "a")
    owners = {route.match[1]: route.cluster for route in table if route.match[0] == "path_separated_prefix"}
    assert owners == {"/v1/a": "a", "/v1/b": "b"}


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("https://localhost:3000", False),
        ("http://localhost.evil.example:80", False),
        ("http://evil.example/http://localhost:1", False),
        ("null", False),
    ],
)
def test_the_allow_list_means_what_it_says(origin: str, allowed: bool) -> None:
    pattern = origin_regex(("http://localhost:*", "http://127.0.0.1:*"))
    assert bool(re.fullmatch(pattern, origin)) is allowed


def test_an_empty_allow_list_allows_nobody() -> None:
    assert re.fullmatch(origin_regex(()), "") is None
    assert re.fullmatch(origin_regex(()), "http://localhost:1") is None
