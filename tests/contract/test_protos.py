"""The gates around protos/: lint, format, breaking changes, and stubs that say what the protos say."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.contract.descriptors import ROOT

BUF = Path(sysconfig.get_path("scripts")) / "buf"
FIELD = "string prediction_id = 1;"
FIELD_FILE = "protos/interlock/router/v1/prediction.proto"


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False, timeout=50
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of contracts and stubs that a test may break."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copytree(ROOT / "gen", tmp_path / "gen")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_lint_has_no_finding() -> None:
    done = run(BUF, "lint", folder=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_lint_refuses_a_field_without_a_comment(copy: Path) -> None:
    rewrite(copy / FIELD_FILE, FIELD, f"{FIELD}\n  string uncommented = 99;")
    done = run(BUF, "lint", folder=copy)
    assert done.returncode != 0
    assert 'Field "uncommented" should have a non-empty comment' in done.stdout


def test_every_file_is_formatted() -> None:
    done = run(BUF, "format", "--diff", "--exit-code", folder=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_nothing_stable_breaks_against_the_last_release() -> None:
    done = run(BUF, "breaking", "--against", "protos/baseline.binpb", folder=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(
    "change",
    ["string prediction_key = 1;", "string prediction_id = 90;", "bytes prediction_id = 1;", ""],
    ids=["renamed", "renumbered", "retyped", "removed"],
)
def test_a_breaking_change_of_a_stable_field_is_refused(copy: Path, change: str) -> None:
    rewrite(copy / FIELD_FILE, FIELD, change)
    done = run(BUF, "breaking", "--against", "protos/baseline.binpb", folder=copy)
    assert done.returncode != 0
    assert "interlock/router/v1/prediction.proto" in done.stdout


def test_the_open_inference_protocol_is_guarded_too(copy: Path) -> None:
    rewrite(
        copy / "protos/inference/grpc_service.proto",
        "repeated bytes raw_input_contents = 7;",
        "repeated bytes raw_input_contents = 8;",
    )
    assert run(BUF, "breaking", "--against", "protos/baseline.binpb", folder=copy).returncode != 0


def test_an_unstable_package_may_change_or_go(copy: Path) -> None:
    (copy / "protos/interlock/monitor/v1alpha1/verdict_service.proto").unlink()
    rewrite(
        copy / "protos/interlock/router/v1alpha1/router_service.proto",
        "int32 max_evaluation_count = 6;",
        "int64 max_evaluation_count = 6;",
    )
    done = run(BUF, "breaking", "--against", "protos/baseline.binpb", folder=copy)
    assert done.returncode == 0, done.stdout


def test_stubs_are_what_the_protos_say() -> None:
    done = run(sys.executable, "protos/generate.py", "--check", folder=ROOT)
    assert done.returncode == 0, done.stderr


def test_drift_names_every_file_that_is_wrong(copy: Path) -> None:
    rewrite(copy / FIELD_FILE, FIELD, "string prediction_key = 1;")
    (copy / "gen/interlock/monitor/v1/monitor_service_pb2.py").unlink()
    (copy / "gen/interlock/monitor/v1/gone_pb2.py").write_text("")
    done = run(sys.executable, "protos/generate.py", "--check", folder=copy)
    assert done.returncode == 1
    assert {line.split(" (")[0] for line in done.stderr.splitlines()} >= {
        "differs  gen/interlock/router/v1/prediction_pb2.py",
        "differs  gen/interlock/router/v1/prediction_pb2.pyi",
        "differs  gen/interlock.binpb",
        "missing  gen/interlock/monitor/v1/monitor_service_pb2.py",
        "stale    gen/interlock/monitor/v1/gone_pb2.py",
    }
    assert "make gen" in done.stderr


def test_generating_mends_drift_and_is_repeatable(copy: Path) -> None:
    (copy / "gen/interlock/monitor/v1/gone_pb2.py").write_text("")
    (copy / "gen/interlock.binpb").write_bytes(b"")
    assert run(sys.executable, "protos/generate.py", folder=copy).returncode == 0
    assert not (copy / "gen/interlock/monitor/v1/gone_pb2.py").exists()
    assert (copy / "gen/interlock.binpb").read_bytes() == (ROOT / "gen/interlock.binpb").read_bytes()


def test_a_proto_that_does_not_compile_leaves_the_stubs_alone(copy: Path) -> None:
    before = (copy / "gen/interlock.binpb").read_bytes()
    rewrite(copy / FIELD_FILE, FIELD, "string prediction_id = one;")
    done = run(sys.executable, "protos/generate.py", folder=copy)
    assert done.returncode == 2
    assert "prediction.proto" in done.stderr
    assert (copy / "gen/interlock.binpb").read_bytes() == before
