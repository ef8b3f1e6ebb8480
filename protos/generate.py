"""Generates everything under gen/ from protos/: Python stubs, their types, and the descriptor set for Envoy.

    python protos/generate.py           writes gen/
    python protos/generate.py --check   writes nothing, fails with a list when gen/ is not what protos/ says

Google's protos get no stubs: Python takes those from googleapis-common-protos, and two copies of one file
cannot live in one descriptor pool. The same input gives the same bytes.
"""

import argparse
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"
OURS = ("inference", "interlock")
DESCRIPTOR_SET = "interlock.binpb"
# Nothing of ours imports these, yet Envoy turns every transcoded error without them into an empty body.
ENVOY_EXTRAS = ("google/rpc/error_details.proto",)


class CompilerError(Exception):
    """The compiler refused the input; it has already said why on stderr."""


def find_inputs() -> list[str]:
    """Return our proto files relative to protos/, sorted, so that the output does not depend on the file system."""
    return sorted(path.relative_to(PROTOS).as_posix() for area in OURS for path in (PROTOS / area).rglob("*.proto"))


def run_protoc(arguments: Sequence[str]) -> None:
    """Run the bundled compiler; raise CompilerError when it reports an error."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", *arguments]) != 0:
        raise CompilerError


def generate(target: Path) -> None:
    """Write stubs, type stubs and the descriptor set below `target`, which exists."""
    scripts = Path(sysconfig.get_path("scripts"))
    inputs = find_inputs()
    plugin = f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}"
    grpc_plugin = f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}"
    run_protoc([plugin, f"--python_out={target}", f"--mypy_out=quiet:{target}", *inputs])
    # A file without a service would get an empty module; services stand in <noun>_service.proto and nowhere else.
    services = [name for name in inputs if name.endswith("_service.proto")]
    run_protoc([grpc_plugin, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services])
    run_protoc(["--include_imports", f"--descriptor_set_out={target / DESCRIPTOR_SET}", *inputs, *ENVOY_EXTRAS])


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the generated files below `folder` by relative path; byte code and foreign files are left out."""
    found = [path for area in OURS for path in (folder / area).rglob("*.py*") if path.suffix in {".py", ".pyi"}]
    found += [folder / DESCRIPTOR_SET] if (folder / DESCRIPTOR_SET).exists() else []
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def describe_drift(fresh: dict[str, bytes], present: dict[str, bytes]) -> list[str]:
    """Return one line per file in which gen/ differs from what protos/ gives; empty when there is no drift."""
    lines = [f"missing  gen/{name}" for name in sorted(fresh.keys() - present.keys())]
    lines += [f"stale    gen/{name} (no proto gives it)" for name in sorted(present.keys() - fresh.keys())]
    lines += [f"differs  gen/{name}" for name in sorted(fresh.keys() & present.keys()) if fresh[name] != present[name]]
    return lines


def apply(fresh: dict[str, bytes], present: dict[str, bytes]) -> None:
    """Make gen/ hold exactly `fresh`; files that are right already keep their time stamps."""
    for name in present.keys() - fresh.keys():
        (GEN / name).unlink()
    for name, content in fresh.items():
        if present.get(name) != content:
            (GEN / name).parent.mkdir(parents=True, exist_ok=True)
            (GEN / name).write_bytes(content)


def main() -> int:
    """Generate or check; return the exit status: 0 right, 1 drift, 2 the protos do not compile."""
    parser = argparse.ArgumentParser(description="Generates gen/ from protos/.")
    parser.add_argument("--check", action="store_true", help="compare only, fail on a difference")
    check_only = parser.parse_args().check
    with tempfile.TemporaryDirectory(prefix="il-gen-") as folder:
        try:
            generate(Path(folder))
        except CompilerError:
            return 2
        fresh = read_tree(Path(folder))
    drift = describe_drift(fresh, read_tree(GEN))
    if check_only and drift:
        sys.stderr.write("\n".join([*drift, "gen/ is out of date: run `make gen` and commit the result.\n"]))
        return 1
    apply(fresh, read_tree(GEN))
    sys.stdout.write(f"gen/: {len(fresh)} files, {len(drift)} changed\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
