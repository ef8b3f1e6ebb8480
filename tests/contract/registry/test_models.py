"""Models and environments: creating, reading, listing, changing."""

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.registry.v1.environment_pb2 import Environment
from interlock.registry.v1.model_pb2 import Model

from tests.fakes.registry_service import Registry, execute, new_id, refused

SERVICE = "interlock.registry.v1.RegistryService"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.rpc(f"{SERVICE}/CreateModel", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetModel", "happy")
async def test_a_model_is_created_and_read_back(registry: Registry) -> None:
    wanted = Model(description="finds fraud", owner="team-risk", labels={"tier": "1"}, latest_version="9", name="x")
    created = (await registry.api.CreateModel(pb.CreateModelRequest(model_id="fraud", model=wanted))).model
    assert (created.name, created.owner, dict(created.labels)) == ("models/fraud", "team-risk", {"tier": "1"})
    assert created.latest_version == ""
    assert created.etag
    assert (await registry.api.GetModel(pb.GetModelRequest(name="models/fraud"))).model == created


@pytest.mark.rpc(f"{SERVICE}/CreateModel", "error")
async def test_an_id_is_taken_whatever_its_case(registry: Registry) -> None:
    await registry.create_model("fraud")
    for taken in ("fraud", "FRAUD", "Fraud"):
        with refused(grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"):
            await registry.create_model(taken)


async def test_a_bad_id_is_refused(registry: Registry) -> None:
    bad_ids = [
        "",
        "..",
        "a..b",
        "../etc/passwd",
        "a/b",
        "a b",
        "-a",
        ".a",
        "a\n",
        "\x00",
        "ä",
        "a" * 129,
        "models/a",
        "%2e",
    ]
    for bad in bad_ids:
        with refused(INVALID, "INVALID_NAME") as seen:
            await registry.create_model(bad)
        assert "model_id" in seen[0].violations


async def test_all_wrong_fields_are_listed(registry: Registry) -> None:
    model = Model(description="d" * 10_001, owner="o" * 201, labels={"k" * 129: "v", "k": "v" * 129})
    with refused(INVALID, "INVALID_FIELD") as seen:
        await registry.api.CreateModel(pb.CreateModelRequest(model_id="fraud", model=model))
    assert len(seen[0].violations) == 4
    assert seen[0].violations["model.owner"] == "want at most 200 characters, got 201"


@pytest.mark.rpc(f"{SERVICE}/GetModel", "error")
async def test_an_unknown_model_is_not_found(registry: Registry) -> None:
    await registry.create_model("fraud")
    for name in ("models/other", "models/FRAUD"):
        with refused(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND") as seen:
            await registry.api.GetModel(pb.GetModelRequest(name=name))
        assert seen[0].metadata == {"name": name}
    with refused(INVALID, "INVALID_NAME"):
        await registry.api.GetModel(pb.GetModelRequest(name="fraud"))


@pytest.mark.rpc(f"{SERVICE}/ListModels", "happy")
async def test_models_are_listed_by_name_in_pages(registry: Registry) -> None:
    ids = ["b", "a-1", "a.1", "C", "a"]
    for model in ids:
        await registry.create_model(model)
    found, token = [], ""
    while True:
        page = await registry.api.ListModels(pb.ListModelsRequest(page_size=2, page_token=token))
        assert len(page.models) <= 2
        found += [model.name for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(f"models/{model}" for model in ids)
    assert len((await registry.api.ListModels(pb.ListModelsRequest(page_size=9_999))).models) == len(ids)


@pytest.mark.rpc(f"{SERVICE}/ListModels", "error")
async def test_a_bad_page_is_refused(registry: Registry) -> None:
    for model in ("a", "b"):
        await registry.create_model(model)
    with refused(INVALID, "INVALID_FIELD"):
        await registry.api.ListModels(pb.ListModelsRequest(page_size=-1))
    with refused(INVALID, "INVALID_PAGE_TOKEN"):
        await registry.api.ListModels(pb.ListModelsRequest(page_token="zzzz"))
    token = (await registry.api.ListModels(pb.ListModelsRequest(page_size=1))).next_page_token
    with refused(INVALID, "INVALID_PAGE_TOKEN"):
        await registry.api.ListEnvironments(pb.ListEnvironmentsRequest(page_token=token))


@pytest.mark.rpc(f"{SERVICE}/UpdateModel", "happy")
async def test_a_mask_says_what_changes(registry: Registry) -> None:
    model = Model(description="old", owner="o", labels={"a": "1"})
    await registry.api.CreateModel(pb.CreateModelRequest(model_id="fraud", model=model))

    async def update(mask: list[str] | None, **fields: object) -> Model:
        request = pb.UpdateModelRequest(
            model=Model(name="models/fraud", **fields),  # type: ignore[arg-type]
            update_mask=None if mask is None else FieldMask(paths=mask),
        )
        return (await registry.api.UpdateModel(request)).model

    first = await update(None, description="new")
    assert (first.description, first.owner, dict(first.labels)) == ("new", "o", {"a": "1"})
    second = await update(["owner", "latest_version"], description="ignored", latest_version="7")
    assert (second.description, second.owner, second.latest_version) == ("new", "", "")
    third = await update(["*"], owner="p")
    assert (third.description, third.owner, dict(third.labels)) == ("", "p", {})
    assert len({first.etag, second.etag, third.etag}) == 3
    assert first.create_time == third.create_time
    assert (await update(None, owner="p")).etag == third.etag, "nothing changed, so the etag stays"


@pytest.mark.rpc(f"{SERVICE}/UpdateModel", "error")
async def test_an_update_is_refused_for_an_old_etag_an_unknown_field_or_model(registry: Registry) -> None:
    await registry.create_model("fraud")
    current = (await registry.api.GetModel(pb.GetModelRequest(name="models/fraud"))).model
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        wanted = Model(name="models/fraud", owner="x", etag=current.etag + "0")
        await registry.api.UpdateModel(pb.UpdateModelRequest(model=wanted))
    with refused(INVALID, "INVALID_FIELD") as seen:
        mask = FieldMask(paths=["descripton", "owner"])
        await registry.api.UpdateModel(pb.UpdateModelRequest(model=Model(name="models/fraud"), update_mask=mask))
    assert '"descripton"' in seen[0].violations["update_mask"]
    with refused(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"):
        await registry.api.UpdateModel(pb.UpdateModelRequest(model=Model(name="models/other", owner="x")))
    with refused(INVALID, "INVALID_NAME"):
        await registry.api.UpdateModel(pb.UpdateModelRequest(model=Model(owner="x")))


async def test_a_repeated_request_gets_the_answer_of_then(registry: Registry) -> None:
    request = pb.CreateModelRequest(model_id="fraud", model=Model(owner="a"), request_id=new_id().upper())
    first = await registry.api.CreateModel(request)
    await registry.api.UpdateModel(pb.UpdateModelRequest(model=Model(name="models/fraud", owner="b")))
    request.request_id = request.request_id.lower()
    assert await registry.api.CreateModel(request) == first
    request.model.owner = "c"
    with refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await registry.api.CreateModel(request)


async def test_after_a_day_a_request_is_a_new_one(registry: Registry, database_url: str) -> None:
    request = pb.CreateModelRequest(model_id="fraud", request_id=new_id())
    first = await registry.api.CreateModel(request)
    almost_a_day_us = 24 * 3600 * 10**6 - 60 * 10**6
    await execute(database_url, f"UPDATE answer SET time_us = time_us - {almost_a_day_us}")
    assert await registry.api.CreateModel(request) == first
    await execute(database_url, f"UPDATE answer SET time_us = time_us - {60 * 10**6}")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"):
        await registry.api.CreateModel(request)
    other = pb.CreateModelRequest(model_id="other", request_id=request.request_id)
    assert (await registry.api.CreateModel(other)).model.name == "models/other"
    assert (await registry.api.CreateModel(other)).model.name == "models/other"


async def test_a_request_that_failed_may_be_sent_again(registry: Registry) -> None:
    request = pb.UpdateModelRequest(model=Model(name="models/fraud", owner="x"), request_id=new_id())
    with refused(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"):
        await registry.api.UpdateModel(request)
    await registry.create_model("fraud")
    assert (await registry.api.UpdateModel(request)).model.owner == "x"


async def test_a_request_id_that_is_no_uuid_is_refused(registry: Registry) -> None:
    with refused(INVALID, "INVALID_FIELD") as seen:
        await registry.api.CreateModel(pb.CreateModelRequest(model_id="fraud", request_id="once"))
    assert seen[0].violations == {"request_id": 'want a UUID, got "once"'}


@pytest.mark.rpc(f"{SERVICE}/CreateEnvironment", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetEnvironment", "happy")
@pytest.mark.rpc(f"{SERVICE}/ListEnvironments", "happy")
async def test_three_environments_exist_and_more_can_be_made(registry: Registry) -> None:
    request = pb.CreateEnvironmentRequest(environment_id="canary", environment=Environment(description="d"))
    created = (await registry.api.CreateEnvironment(request)).environment
    found = await registry.api.GetEnvironment(pb.GetEnvironmentRequest(name="environments/canary"))
    assert found.environment == created
    listed = (await registry.api.ListEnvironments(pb.ListEnvironmentsRequest())).environments
    assert [each.name for each in listed] == [
        f"environments/{name}" for name in ("canary", "dev", "production", "staging")
    ]


@pytest.mark.rpc(f"{SERVICE}/CreateEnvironment", "error")
@pytest.mark.rpc(f"{SERVICE}/GetEnvironment", "error")
@pytest.mark.rpc(f"{SERVICE}/ListEnvironments", "error")
async def test_environments_are_refused_like_models(registry: Registry) -> None:
    with refused(grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"):
        await registry.api.CreateEnvironment(pb.CreateEnvironmentRequest(environment_id="Production"))
    with refused(INVALID, "INVALID_NAME"):
        await registry.api.CreateEnvironment(pb.CreateEnvironmentRequest())
    with refused(INVALID, "INVALID_FIELD"):
        wanted = Environment(description="d" * 1_001)
        await registry.api.CreateEnvironment(pb.CreateEnvironmentRequest(environment_id="e", environment=wanted))
    with refused(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"):
        await registry.api.GetEnvironment(pb.GetEnvironmentRequest(name="environments/none"))
    with refused(INVALID, "INVALID_FIELD"):
        await registry.api.ListEnvironments(pb.ListEnvironmentsRequest(page_size=-5))
