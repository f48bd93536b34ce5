"""The generated code that is committed is what the .proto files give now."""

from gateway.grpc.generate import PACKAGE, PROTO, generated


def test_generated_code_is_current() -> None:
    folder = PROTO / PACKAGE
    committed = {path.name: path.read_text() for path in folder.iterdir() if "_pb2" in path.name}
    made = generated()
    assert committed.keys() == made.keys(), "run `python -m gateway.grpc.generate`"
    for name in made:
        assert committed[name] == made[name], f"{name}: run `python -m gateway.grpc.generate`"
