"""Makes src/model_ops_pb2*.py from proto/model_ops.proto; with --check only says whether they are up to date."""

import sys
import tempfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("model_ops_pb2.py", "model_ops_pb2.pyi", "model_ops_pb2_grpc.py")


def generate(target: Path) -> None:
    """Write the three modules into the folder `target`."""
    from grpc_tools import protoc

    includes = str(resources.files("grpc_tools") / "_proto")
    arguments = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    proto = ROOT / "proto"
    if protoc.main(["protoc", f"-I{proto}", f"-I{includes}", *arguments, str(proto / "model_ops.proto")]):
        raise SystemExit("protoc failed")


def main() -> None:
    """Generate in place, or compare."""
    source = ROOT / "src"
    if "--check" not in sys.argv:
        generate(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [name for name in NAMES if (source / name).read_text() != (Path(folder) / name).read_text()]
    if stale:
        raise SystemExit(f"out of date: {', '.join(stale)}; run 'make proto'")


if __name__ == "__main__":
    main()
