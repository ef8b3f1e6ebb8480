"""Resource names and ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.common.names import DEPLOYMENT, MODEL, ROUTE, VERSION, NameFormat, id_violation, is_id, parse_id

GOOD_IDS = ["a", "3", "2.0.1", "champion", "flight-delay", "A_b.c-d", "x" * 128]
BAD_IDS = [
    "",
    ".",
    "..",
    "a..b",
    "-a",
    "_a",
    ".a",
    "a b",
    "a/b",
    "a\n",
    "a\r\nb",
    "a\x00",
    "é",
    "a%2e",
    "x" * 129,
    "\u202e",
]


@pytest.mark.parametrize("value", GOOD_IDS)
def test_a_good_id_is_taken_as_it_is(value: str) -> None:
    assert parse_id(value) == value
    assert id_violation(value, "id") is None


@pytest.mark.parametrize("value", BAD_IDS)
def test_a_bad_id_is_refused_with_field_want_and_got(value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_id(value, "model_id")
    error = caught.value
    assert error.reason == "INVALID_NAME"
    assert error.metadata == {"field": "model_id"}
    assert error.message.startswith("model_id: want 1 to 128 characters")
    assert "got " in error.message
    assert error.message.isprintable()
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("form", "name", "ids"),
    [
        (MODEL, "models/fraud", ("fraud",)),
        (VERSION, "models/fraud/versions/2.0.1", ("fraud", "2.0.1")),
        (ROUTE, "models/fraud/routes/production", ("fraud", "production")),
        (DEPLOYMENT, "deployments/d-1", ("d-1",)),
    ],
)
def test_a_name_and_its_ids_make_each_other(form: NameFormat, name: str, ids: tuple[str, ...]) -> None:
    assert form.parse(name) == ids
    assert form.format(*ids) == name
    assert form.violation(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "models",
        "models/",
        "models/a/",
        "/models/a",
        "model/a",
        "models/a/versions/3",
        "models/..",
        "models/{model}x/",
        "a/b",
    ],
)
def test_another_form_is_refused(name: str) -> None:
    violation = MODEL.violation(name, "parent")
    assert violation is not None
    assert violation.field == "parent"
    assert violation.description.startswith("want models/{model}")
    with pytest.raises(InvalidArgument):
        MODEL.parse(name)


def test_format_refuses_bad_ids_and_wrong_counts() -> None:
    with pytest.raises(InvalidArgument):
        VERSION.format("fraud", "../1")
    with pytest.raises(TypeError):
        VERSION.format("fraud")


@given(st.text())
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    name = f"models/{text}"
    if is_id(text):
        assert MODEL.parse(name) == (text,)
        assert "/" not in text
        assert ".." not in text
    else:
        with pytest.raises(InvalidArgument):
            MODEL.parse(name)
