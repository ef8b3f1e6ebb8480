"""Versions, their labels and aliases."""

import grpc
import pytest
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.registry.v1.baseline_pb2 import Baseline, CategoricalProfile, FeatureProfile, NumericProfile
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, Lineage, ModelFile, ModelVersion
from interlock.types.v1.tensor_pb2 import DATA_TYPE_FP64

from tests.fakes.registry_service import (
    MODEL_BYTES,
    MODEL_DIGEST,
    Registry,
    a_golden_row,
    a_signature,
    a_version,
    new_id,
    refused,
)

SERVICE = "interlock.registry.v1.RegistryService"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def fraud(registry: Registry) -> Registry:
    await registry.create_model("fraud")
    await registry.upload()
    return registry


def create(**fields: object) -> pb.CreateModelVersionRequest:
    return pb.CreateModelVersionRequest(parent="models/fraud", model_version=a_version(**fields))


async def get(registry: Registry, version: str) -> ModelVersion:
    request = pb.GetModelVersionRequest(name=f"models/fraud/versions/{version}")
    return (await registry.api.GetModelVersion(request)).model_version


@pytest.mark.rpc(f"{SERVICE}/CreateModelVersion", "happy")
async def test_a_version_gets_the_next_id_and_is_kept_whole(fraud: Registry) -> None:
    wanted = a_version(
        name="models/other/versions/9",
        creator="mallory",
        digest="0" * 64,
        baseline=Baseline(row_count=10, features=[FeatureProfile(name="age", numeric=NumericProfile())]),
        lineage=Lineage(code_revision="abc", metrics={"auc": 0.7}),
    )
    request = pb.CreateModelVersionRequest(parent="models/fraud", model_version=wanted)
    created = (await fraud.api.CreateModelVersion(request)).model_version
    assert created.name == "models/fraud/versions/1"
    assert created.creator == "local"
    assert created.files[0].size_bytes == len(MODEL_BYTES)
    assert len(created.digest) == 64
    assert created.digest != wanted.digest
    for field in ("signature", "baseline", "lineage", "runtime"):
        assert getattr(created, field) == getattr(wanted, field)
    assert list(created.golden_rows) == list(wanted.golden_rows)
    assert await get(fraud, "1") == created
    second = await fraud.create_version(description="same answers")
    assert (second.name, second.digest) == ("models/fraud/versions/2", created.digest)
    model = (await fraud.api.GetModel(pb.GetModelRequest(name="models/fraud"))).model
    assert model.latest_version == "2"


@pytest.mark.rpc(f"{SERVICE}/CreateModelVersion", "error")
async def test_everything_that_is_wrong_with_a_version_is_listed(fraud: Registry) -> None:
    signature = a_signature()
    signature.features[1].column = 0
    signature.inputs[0].data_type = DATA_TYPE_FP64
    wrong = ModelVersion(
        semantic_version="two",
        files=[ModelFile(path="../model.onnx", digest="abc")],
        signature=signature,
        baseline=Baseline(outputs=[FeatureProfile(name="other", categorical=CategoricalProfile())]),
        golden_rows=[a_golden_row()],
    )
    with refused(INVALID, "INVALID_FIELD") as seen:
        await fraud.api.CreateModelVersion(pb.CreateModelVersionRequest(parent="models/fraud", model_version=wrong))
    assert set(seen[0].violations) == {
        "model_version.runtime",
        "model_version.semantic_version",
        "model_version.files[0].path",
        "model_version.files[0].digest",
        "model_version.signature.features",
        "model_version.baseline.outputs[0].name",
        "model_version.golden_rows[0].inputs[0].data_type",
    }
    assert "want FP64, got FP32" in seen[0].violations["model_version.golden_rows[0].inputs[0].data_type"]


async def test_a_signature_that_contradicts_itself_has_a_reason_of_its_own(fraud: Registry) -> None:
    signature = a_signature()
    signature.features[0].tensor = "z"
    with refused(INVALID, "INVALID_SIGNATURE"):
        await fraud.api.CreateModelVersion(create(signature=signature, golden_rows=[]))


async def test_content_must_be_there_first(fraud: Registry) -> None:
    missing = [ModelFile(path="a", digest=MODEL_DIGEST), ModelFile(path="b", digest="0" * 64)]
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ARTIFACT_INCOMPLETE") as seen:
        await fraud.api.CreateModelVersion(create(files=missing))
    assert seen[0].metadata["digest"] == "0" * 64


async def test_a_version_needs_its_model(registry: Registry) -> None:
    await registry.upload()
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await registry.api.CreateModelVersion(create())


async def test_a_label_names_one_version_only(fraud: Registry) -> None:
    await fraud.create_version(semantic_version="1.0.0-RC.1")
    assert (await get(fraud, "1.0.0-RC.1")).name == "models/fraud/versions/1"
    with refused(grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"):
        await fraud.create_version(semantic_version="1.0.0-rc.1")
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await get(fraud, "1.0.0-rc.1")
    assert (await fraud.create_version(semantic_version="1.0.0")).name == "models/fraud/versions/2"


@pytest.mark.rpc(f"{SERVICE}/GetModelVersion", "happy")
@pytest.mark.rpc(f"{SERVICE}/SetModelAlias", "happy")
async def test_an_id_a_label_and_an_alias_name_the_same_version(fraud: Registry) -> None:
    first = await fraud.create_version(semantic_version="1.2.3")
    second = await fraud.create_version()

    async def point(version: str) -> dict[str, str]:
        request = pb.SetModelAliasRequest(model="models/fraud", alias="champion", version=version)
        return dict((await fraud.api.SetModelAlias(request)).model.aliases)

    assert await point("2") == {"champion": "2"}
    assert await get(fraud, "champion") == second
    assert await point("1.2.3") == {"champion": "1"}
    assert await get(fraud, "champion") == await get(fraud, "1") == await get(fraud, "1.2.3") == first


@pytest.mark.rpc(f"{SERVICE}/GetModelVersion", "error")
async def test_a_version_that_is_not_there_is_not_found(fraud: Registry) -> None:
    await fraud.create_version()
    for version in ("2", "01", "9" * 30, "none", "1.0.0"):
        with refused(MISSING, "RESOURCE_NOT_FOUND") as seen:
            await get(fraud, version)
        assert seen[0].metadata["name"] == f"models/fraud/versions/{version}"


@pytest.mark.rpc(f"{SERVICE}/SetModelAlias", "error")
async def test_a_bad_alias_is_refused(fraud: Registry) -> None:
    await fraud.create_version()

    async def point(alias: str, version: str = "1", model: str = "fraud") -> None:
        await fraud.api.SetModelAlias(pb.SetModelAliasRequest(model=f"models/{model}", alias=alias, version=version))

    for alias in ("", "1st", "a.b", "../x", "a" * 129):
        with refused(INVALID, "INVALID_NAME"):
            await point(alias)
    with refused(INVALID, "INVALID_NAME"):
        await point("champion", "other-alias")
    for version, model in (("2", "fraud"), ("1.0.0", "fraud"), ("1", "none")):
        with refused(MISSING, "RESOURCE_NOT_FOUND"):
            await point("champion", version, model)
    await point("champion")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"):
        await point("Champion")


@pytest.mark.rpc(f"{SERVICE}/DeleteModelAlias", "happy")
@pytest.mark.rpc(f"{SERVICE}/DeleteModelAlias", "error")
async def test_an_alias_goes_once(fraud: Registry) -> None:
    await fraud.create_version()
    await fraud.api.SetModelAlias(pb.SetModelAliasRequest(model="models/fraud", alias="a", version="1"))
    request = pb.DeleteModelAliasRequest(model="models/fraud", alias="a", request_id=new_id())
    answer = await fraud.api.DeleteModelAlias(request)
    assert dict(answer.model.aliases) == {}
    assert await fraud.api.DeleteModelAlias(request) == answer
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await fraud.api.DeleteModelAlias(pb.DeleteModelAliasRequest(model="models/fraud", alias="a"))


@pytest.mark.rpc(f"{SERVICE}/ListModelVersions", "happy")
async def test_versions_are_listed_newest_first(fraud: Registry) -> None:
    for _ in range(11):
        await fraud.create_version()
    await fraud.create_model("other")
    await fraud.create_version("other")
    found, token = [], ""
    while True:
        request = pb.ListModelVersionsRequest(parent="models/fraud", page_size=4, page_token=token)
        page = await fraud.api.ListModelVersions(request)
        found += [int(version.name.rpartition("/")[2]) for version in page.model_versions]
        token = page.next_page_token
        if not token:
            break
    assert found == list(range(11, 0, -1))


@pytest.mark.rpc(f"{SERVICE}/ListModelVersions", "error")
async def test_a_token_is_good_for_its_own_list_only(fraud: Registry) -> None:
    for _ in range(2):
        await fraud.create_version()
    await fraud.create_model("other")
    first = await fraud.api.ListModelVersions(pb.ListModelVersionsRequest(parent="models/fraud", page_size=1))
    with refused(INVALID, "INVALID_PAGE_TOKEN"):
        await fraud.api.ListModelVersions(
            pb.ListModelVersionsRequest(parent="models/other", page_token=first.next_page_token)
        )
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await fraud.api.ListModelVersions(pb.ListModelVersionsRequest(parent="models/none"))


async def test_a_version_without_features_is_served_by_the_inference_protocol_only(fraud: Registry) -> None:
    signature = a_signature()
    signature.ClearField("features")
    signature.ClearField("prediction")
    created = await fraud.create_version(signature=signature, runtime=RUNTIME_ONNX)
    assert created.signature == signature
