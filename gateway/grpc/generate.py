"""`python -m gateway.grpc.generate`: make the Python code of the .proto files anew (grpcio-tools, extra `test`)."""

import re
import tempfile
from importlib import resources
from pathlib import Path

PROTO = Path(__file__).with_name("proto")
PACKAGE = Path("pathserve", "v1")

_HEADER = "# Made by `python -m gateway.grpc.generate`.\n# ruff: noqa\n# fmt: off\n# mypy: ignore-errors\n"
# protoc's imports follow the path of the .proto files; ours lie below a package.
_IMPORT = re.compile(r"^from pathserve\.v1 import", re.MULTILINE)


def generated() -> dict[str, str]:
    """The code by file name, as it belongs beside the .proto files."""
    from grpc_tools import protoc  # type: ignore[import-untyped]

    tools = Path(str(resources.files("grpc_tools")))
    with tempfile.TemporaryDirectory() as folder:
        status = protoc.main(
            [
                "protoc",
                *(f"-I{path}" for path in (PROTO, tools / "_proto", tools.parent)),
                *(f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")),
                *(str(path.relative_to(PROTO)) for path in sorted((PROTO / PACKAGE).glob("*.proto"))),
            ]
        )
        if status != 0:
            raise SystemExit("protoc refused the .proto files.")
        return {
            path.name: _HEADER + _IMPORT.sub(f"from {__package__}.proto.pathserve.v1 import", path.read_text())
            for path in sorted(Path(folder, PACKAGE).iterdir())
            # A file without a service has an empty one of these.
            if "_grpc" not in path.name or "class " in path.read_text()
        }


def main() -> None:
    folder = PROTO / PACKAGE
    for path in (*folder.glob("*_pb2*.py"), *folder.glob("*_pb2*.pyi")):
        path.unlink()
    for name, code in generated().items():
        (folder / name).write_text(code)


if __name__ == "__main__":
    main()
