"""Generates the Python stubs of api/ into a folder: `generate_stubs.py OUT_DIR`.

OUT_DIR gets the portions `modelpress/v1` and `modelpress/amct` of the package `modelpress`; with OUT_DIR on sys.path
they join the hand-written modules (src/modelpress/__init__.py extends its path). Nothing is done where the stubs are
newer than the .proto files. Uses protoc and grpc_python_plugin from PATH, or else grpcio-tools.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

API = Path(__file__).resolve().parents[2] / "api"
# Folder in api/ -> package. In api/ the record file's protos lie in "amct"; a top-level Python package of that name
# would be too easy to confuse with AMCT itself.
PACKAGES = {"modelpress/v1": "modelpress/v1", "amct": "modelpress/amct"}


def protos() -> list[Path]:
    """The .proto files that stubs are made of."""
    found = [proto for folder in PACKAGES for proto in sorted((API / folder).glob("*.proto"))]
    if not found:
        raise SystemExit(f"no .proto files below {API}: stubs are generated from a checkout of the whole tree")
    return found


def is_current(out: Path) -> bool:
    """Whether every stub is there and newer than every input."""
    newest_input = max(path.stat().st_mtime for path in [*protos(), Path(__file__)])
    for proto in protos():
        package = out / PACKAGES[proto.parent.relative_to(API).as_posix()]
        for stub in (package / f"{proto.stem}_pb2.py", package / f"{proto.stem}_pb2.pyi", package / "__init__.py"):
            if not stub.exists() or stub.stat().st_mtime < newest_input:
                return False
    return True


def compiler() -> list[str]:
    """The protoc command, without inputs and outputs."""
    if shutil.which("protoc") and shutil.which("grpc_python_plugin"):
        plugin = shutil.which("grpc_python_plugin")
        return ["protoc", f"--plugin=protoc-gen-grpc_python={plugin}"]
    if importlib.util.find_spec("grpc_tools"):
        import grpc_tools

        well_known = Path(grpc_tools.__file__).parent / "_proto"
        return [sys.executable, "-m", "grpc_tools.protoc", f"-I{well_known}"]
    raise SystemExit("neither protoc with grpc_python_plugin on PATH nor the Python package grpcio-tools was found")


def googleapis() -> Path:
    """The folder that holds google/rpc/status.proto (package googleapis-common-protos)."""
    spec = importlib.util.find_spec("google.rpc")
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "status.proto").exists():
            return Path(location).parents[1]
    raise SystemExit("the Python package googleapis-common-protos is not installed")


def supplement(includes: Path, folder: Path) -> None:
    """Puts into `folder` what `includes` has under another name than its Python modules register.

    PyPI's googleapis-common-protos has google/longrunning/operations.proto as operations_proto.proto.
    """
    target = folder / "google" / "longrunning" / "operations.proto"
    target.parent.mkdir(parents=True)
    if not (includes / target.relative_to(folder)).exists():
        shutil.copyfile(includes / "google" / "longrunning" / "operations_proto.proto", target)


def generate(out: Path) -> None:
    """Brings the stubs below `out` up to date."""
    if is_current(out):
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".stubs-") as temporary:
        raw, supplements = Path(temporary) / "stubs", Path(temporary) / "supplements"
        raw.mkdir()
        includes = googleapis()
        supplement(includes, supplements)
        outputs = [f"--{kind}_out={raw}" for kind in ("python", "pyi", "grpc_python")]
        names = [proto.relative_to(API).as_posix() for proto in protos()]
        subprocess.run([*compiler(), f"-I{API}", f"-I{includes}", f"-I{supplements}", *outputs, *names], check=True)
        for folder, package in PACKAGES.items():
            (out / package).mkdir(parents=True, exist_ok=True)
            (raw / folder / "__init__.py").write_text('"""Generated from api/."""\n')
            for stub in (raw / folder).iterdir():
                text = re.sub(r"^from amct import", "from modelpress.amct import", stub.read_text(), flags=re.MULTILINE)
                text = text.replace("(DESCRIPTOR, 'amct.", "(DESCRIPTOR, 'modelpress.amct.")  # pickle looks there
                stub.write_text(text)
                stub.replace(out / package / stub.name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: generate_stubs.py OUT_DIR")
    generate(Path(sys.argv[1]))
