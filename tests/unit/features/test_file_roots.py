"""Definitions and jobs name files under the folders of the settings, however they write it, and no others of the host."""

from pathlib import Path

import pytest

from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.offline_task import TableJoinTask
from services.features.adapters.offline_work import _empty_folder
from services.features.domain.definitions import BatchSource, FileFormat, FileLocation
from services.features.domain.failure import OutputUnusable, SourceUnreadable
from services.features.domain.file_roots import FileRoots
from services.features.domain.point_in_time import JoinPlan
from services.features.settings import Settings

ROOTS = FileRoots(["file:///srv/data", "s3://lake/export/"])


@pytest.mark.parametrize(
    "uri",
    ["file:///srv/data/x.csv", "file:///srv/data", "file:///srv/data/day=*/part-?.parquet", "s3://lake/export/a"],
)
def test_what_lies_under_a_root_is_taken(uri: str) -> None:
    assert not list(ROOTS.check(uri, "uri"))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/srv/data/x.csv",
        "file:///etc/passwd",
        "file:///srv/data_evil/x.csv",
        "file:///srv/data/../../etc/passwd",
        "file:///srv/data/./x.csv",
        "file:///srv/data//etc/passwd",
        "file:////srv/data/x.csv",
        "file://localhost/srv/data/x.csv",
        "file://~/x.csv",
        "file://srv/data/x.csv",
        "file:/srv/data/x.csv",
        "FILE:///srv/data/x.csv",
        "file:///srv/data/x\0.csv",
        "file:///srv/data/..\\..\\x.csv",
        "file:///srv/data/x::http://127.0.0.1/",
        "simplecache::file:///srv/data/x.csv",
        "file:///srv/d*/x.csv",
        "s3://lake/other/a",
        "s3://lake2/export/a",
        "s3://lake/export/../other/a",
        "gs://lake/export/a",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_everything_else_is_refused_with_field_want_and_got(uri: str) -> None:
    (wrong, *_) = ROOTS.check(uri, "rows.files.uri")
    assert wrong.field == "rows.files.uri"
    assert wrong.description.startswith("want ")
    assert ", got " in wrong.description


def test_no_link_leads_out_of_a_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    secret = outside / "secret.csv"
    secret.write_text("a\n1\n")
    (root / "file.csv").symlink_to(secret)
    (root / "folder").symlink_to(outside)
    (root / "round").symlink_to(root / "round")
    (root / "alias.csv").symlink_to(root / "real.csv")
    (root / "real.csv").write_text("a\n2\n")
    reader = BatchReader({}, FileRoots([f"file://{root}"]))

    def read(path: str) -> list[dict[str, str]]:
        location = FileLocation(f"file://{root}{path}", FileFormat.CSV)
        return [
            row
            for piece in reader.read_pieces(BatchSource(location=location, event_time_column="a"))
            for row in piece.to_pylist()
        ]

    assert read("/real.csv") == read("/alias.csv") == [{"a": "2"}]
    for path in ("/file.csv", "/folder/secret.csv", "/folder/*.csv", "/folder", "/round", "/*.csv"):
        with pytest.raises(SourceUnreadable):
            read(path)
    plan = JoinPlan("at", ())
    for name in ("folder/result", "folder"):
        task = TableJoinTask(
            plan=plan,
            histories={},
            rows=BatchSource(location=None, event_time_column="at"),
            output_uri=f"file://{root}/{name}",
            job_id="one",
        )
        with pytest.raises(OutputUnusable, match="leads elsewhere"):
            _empty_folder(task, reader.roots)
    assert list(outside.iterdir()) == [secret]


def test_a_root_that_is_itself_a_link_is_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    roots = FileRoots([f"file://{tmp_path}/root"])
    assert roots.real_path(f"{tmp_path}/root/x.csv") == tmp_path / "disk" / "x.csv"


def test_without_a_setting_it_is_a_folder_of_the_state(tmp_path: Path) -> None:
    assert Settings(state_dir=tmp_path).file_roots.uris == [f"file://{tmp_path}/features/files"]
    for root in ("/srv", "file://srv", "file:///a/../b", "http://x"):
        with pytest.raises(ValueError, match="want "):
            Settings(state_dir=tmp_path, features_file_roots=[root])
