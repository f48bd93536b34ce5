"""The repository refuses by name what it cannot prove."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gateway.inference import ModelRepository
from gateway.inference import repository as repository_module
from gateway.operations.errors import InferenceError, ModelNotLoaded, ModelRefused
from tests.support.models import add_version, read, seal, write

from . import models


@pytest.fixture
def changeable(repository: Path, tmp_path: Path) -> ModelRepository:
    """A copy of the repository that a test may spoil."""
    shutil.copytree(repository, tmp_path / "models")
    return ModelRepository(tmp_path / "models")


def edit(file: Path, old: str, new: str) -> None:
    """Change a file, and seal its folder anew: what is refused is the content."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    seal(file.parent)


def accept(folder: Path, file: str) -> None:
    """Make provenance.json name a file as it is now, and change nothing else."""
    provenance = read(folder, "provenance.json")
    provenance["files"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    write(folder, "provenance.json", provenance)


def test_every_model_is_listed_and_sound(repository: Path) -> None:
    opened = ModelRepository(repository)
    assert opened.folders == opened.models == ("both", "encoder", "head", "picky", "slow", "twin")
    assert [opened.check(folder).name for folder in opened.folders] == list(opened.folders)


def test_a_contract_tells_names_types_dims_batch_and_instances(repository: Path) -> None:
    contract = ModelRepository(repository).contract("twin")
    (image,), (embedding,) = contract.inputs, contract.outputs
    assert (image.name, image.datatype, image.dims, image.dtype) == ("image", "UINT8", (64, 64, 3), np.uint8)
    assert (embedding.name, embedding.datatype, embedding.dims) == ("embedding", "FP32", (8,))
    assert (contract.max_batch_size, contract.instances, contract.steps) == (64, 2, ())
    assert ModelRepository(repository).contract("both").steps == ("encoder", "head")


def test_a_card_becomes_the_domain_type(repository: Path) -> None:
    card = ModelRepository(repository).card("both")
    assert (card.name, card.kind, card.mpp, card.tile_px) == ("both", "ensemble", 0.5, 64)
    assert card.labels[2].index == 2
    assert card.labels[0].code.scheme == "SCT"
    assert card.intended_use.stains == ("HE",)
    assert card.version.weights_sha256 == "1" * 64
    assert len(card.version.engine_sha256) == 64


@pytest.mark.parametrize("model", ["encoder", "both"], ids=["the model itself", "the ensemble of it"])
def test_a_flipped_byte_is_refused_by_name(changeable: ModelRepository, model: str) -> None:
    artefact = changeable.path / "encoder" / "1" / "model.onnx"
    data = bytearray(artefact.read_bytes())
    data[len(data) // 2] ^= 1
    artefact.write_bytes(data)
    with pytest.raises(ModelRefused, match=r"encoder.*digest"):
        changeable.check(model)
    assert changeable.check("head").name == "head"


def test_an_ensemble_of_an_exchanged_step_is_refused(changeable: ModelRepository) -> None:
    shutil.rmtree(changeable.path / "head")
    models.write_encoder(changeable.path, "head")
    assert changeable.check("head").name == "head"
    with pytest.raises(ModelRefused, match=r"both.*digest"):
        changeable.check("both")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "dynamic_batching { }",
            "dynamic_batching { default_queue_policy { max_queue_size: 8 } }",
            "default_queue_policy",
        ),
        (
            "dynamic_batching { }",
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 }",
            "priority_levels",
        ),
        (
            "dynamic_batching { }",
            "dynamic_batching { priority_queue_policy { key: 1 value: { max_queue_size: 3 } } }",
            "priority_queue_policy",
        ),
        ('backend: "onnxruntime"', 'backend: "onnxruntime" runtime: "model.py"', "runtime"),
        ("count: 1 ", "", "count"),
        ("instance_group [ { count: 1 kind: KIND_CPU } ]", "", "count"),
        ('name: "encoder"', 'name: "other"', "names itself 'other'"),
        ("dynamic_batching { }", "version_policy { all { } }", "version_policy"),
        ("max_batch_size: 64", "max_batch_sise: 64", "max_batch_sise"),
        ("max_batch_size: 64", "max_batch_size: many", "cannot be read"),
    ],
)
def test_a_config_that_stalls_or_cannot_be_read_is_refused(
    changeable: ModelRepository, old: str, new: str, words: str
) -> None:
    edit(changeable.path / "encoder" / "config.pbtxt", old, new)
    with pytest.raises(ModelRefused, match=words):
        changeable.check("encoder")


def test_a_queue_delay_is_allowed(changeable: ModelRepository) -> None:
    edit(
        changeable.path / "encoder" / "config.pbtxt",
        "dynamic_batching { }",
        "dynamic_batching { max_queue_delay_microseconds: 2000 preferred_batch_size: [ 8, 32 ] }",
    )
    assert changeable.check("encoder").name == "encoder"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card.pop("mpp"), "mpp"),
        (lambda card: card.update(mpp="fine"), "mpp"),
        (lambda card: card.update(schema="pathserve-card-9"), "pathserve-card-1"),
        (lambda card: card.update(name="other"), "another model"),
        (lambda card: card.update(digests=[]), "digests"),
        (lambda card: card["digests"].pop("weights_sha256"), "weights_sha256"),
        (lambda card: card["digests"].update(weights_sha256="9" * 64), "differ in weights_sha256"),
        (lambda card: card["digests"].update(engine_sha256="9" * 64), "differ in engine_sha256"),
        (lambda card: card.update(version="2"), "version 2"),
        (lambda card: card.update(kind="head"), "differ in kind"),
        (lambda card: card.update(target="cpu"), "differ in target"),
        (lambda card: card.update(precision="bf16"), "differ in precision"),
        (lambda card: card.update(precision="fp12"), "precision"),
        (lambda card: card.update(not_executed="Never ran."), "never executed"),
        (lambda card: card["labels"][0].pop("code"), "code"),
    ],
)
def test_a_card_not_as_agreed_is_refused(changeable: ModelRepository, change, words: str) -> None:
    folder = changeable.path / "encoder"
    card = read(folder, "card.json")
    change(card)
    write(folder, "card.json", card)
    accept(folder, "card.json")
    with pytest.raises(ModelRefused, match=words):
        changeable.check("encoder")


@pytest.mark.parametrize("file", ["card.json", "gate.json", "provenance.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_sidecar_that_is_no_json_object_is_refused(changeable: ModelRepository, file: str, text: str) -> None:
    (changeable.path / "encoder" / file).write_text(text)
    if file == "card.json":
        accept(changeable.path / "encoder", file)
    with pytest.raises(ModelRefused, match=f"encoder is refused: its {file}"):
        changeable.check("encoder")


def test_the_cards_schema_is_enforced_where_it_is_there(changeable: ModelRepository) -> None:
    (changeable.path / "card.schema.json").write_text(json.dumps({"properties": {"mpp": {"maximum": 0.25}}}))
    with pytest.raises(ModelRefused, match=r"\$\.mpp.*0\.5"):
        changeable.check("encoder")


def test_missing_files_and_models_are_told_apart(changeable: ModelRepository) -> None:
    with pytest.raises(ModelNotLoaded, match="absent"):
        changeable.check("absent")
    (changeable.path / "encoder" / "1" / "model.onnx").unlink()
    with pytest.raises(ModelRefused, match="engine file is missing"):
        changeable.check("encoder")
    (changeable.path / "slow" / "1").rename(changeable.path / "slow" / "away")
    with pytest.raises(ModelRefused, match="no version folder"):
        changeable.served_version("slow")
    for file in ("config.pbtxt", "card.json", "gate.json", "provenance.json"):
        (changeable.path / "head" / file).rename(changeable.path / "aside")
        with pytest.raises(ModelRefused, match=f"head is refused: its {file} is missing"):
            changeable.check("head")
        (changeable.path / "aside").rename(changeable.path / "head" / file)


@pytest.mark.parametrize(
    "name", ["m$(touch X)", "../encoder", "a b", "a;b", "", ".", "encoder\n", "`id`", "ü", "a-b", "m-v1"]
)
def test_a_name_that_a_shell_could_run_is_refused(changeable: ModelRepository, name: str) -> None:
    with pytest.raises(ModelRefused, match="letters, digits"):
        changeable.check(name)


def test_a_folder_with_such_a_name_is_not_listed(changeable: ModelRepository) -> None:
    shutil.copytree(changeable.path / "encoder", changeable.path / "m$(touch X)")
    (changeable.path / "notes").mkdir()
    assert changeable.folders == ("both", "encoder", "head", "picky", "slow", "twin")


def test_a_step_with_such_a_name_is_refused(changeable: ModelRepository) -> None:
    edit(changeable.path / "both" / "config.pbtxt", 'model_name: "encoder"', 'model_name: "m$(touch X)"')
    with pytest.raises(ModelRefused, match=r"^The model both is refused: .*a step is no name of a model folder"):
        changeable.check("both")


def test_golden_answers_are_read_and_broken_ones_refused(changeable: ModelRepository) -> None:
    golden = changeable.golden("encoder")
    assert golden is not None
    assert golden.inputs["image"].shape == (3, 64, 64, 3)
    assert golden.expected["embedding"].shape == (3, 8)
    assert changeable.golden("head") is None
    file = changeable.path / "encoder" / "golden.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelRefused, match=r"golden\.npz is not the one"):
        changeable.golden("encoder")
    with pytest.raises(ModelRefused, match=r"golden\.npz is not the one"):
        changeable.check("encoder")
    seal(file.parent)
    with pytest.raises(ModelRefused, match=r"golden\.npz cannot be read"):
        changeable.golden("encoder")
    np.savez(file, image=models.tiles(1))
    seal(file.parent)
    with pytest.raises(ModelRefused, match=r"golden\.npz does not fit"):
        changeable.golden("encoder")
    file.unlink()
    for ask in (changeable.golden, changeable.check):
        with pytest.raises(ModelRefused, match=r"golden\.npz is missing"):
            ask("encoder")


def test_an_unreadable_repository_holds_no_models(tmp_path: Path) -> None:
    assert ModelRepository(tmp_path / "nowhere").folders == ()


def test_a_batch_is_checked_against_the_contract(repository: Path) -> None:
    contract = ModelRepository(repository).contract("encoder")
    contract.check({"image": models.tiles(64)})
    with pytest.raises(InferenceError, match=r"UINT8 \(B, 64, 64, 3\), not uint8 \(64, 64, 3\)"):
        contract.check({"image": models.tiles(1)[0]})


def test_a_batch_of_any_size_is_checked_against_the_contract(changeable: ModelRepository) -> None:
    folder = changeable.path / "head"
    edit(folder / "config.pbtxt", "max_batch_size: 64", "max_batch_size: 0")
    edit(folder / "config.pbtxt", "dims: [ 8 ]", "dims: [ 1, -1, 8 ]")
    contract = changeable.check("head")
    for tiles in (1, 20_000):
        contract.check({"embedding": np.zeros((1, tiles, 8), np.float32)})
    with pytest.raises(InferenceError, match=r"FP32 \(1, any, 8\), not float32 \(2, 5, 8\)"):
        contract.check({"embedding": np.zeros((2, 5, 8), np.float32)})


def test_a_folder_that_is_exchanged_while_it_is_read_is_read_again(changeable: ModelRepository) -> None:
    folder = changeable.path / "encoder"
    other = shutil.copytree(folder, changeable.path.parent / "encoder")
    write(other, "card.json", read(other, "card.json") | {"title": "Another title"})
    seal(other)

    class Exchanged(ModelRepository):
        def _read(self, name: str, file: str) -> bytes:
            data = super()._read(name, file)
            if other.exists():
                shutil.rmtree(folder)
                other.rename(folder)
            return data

    assert Exchanged(changeable.path).card("encoder").title == "Another title"


def test_a_folder_that_vanishes_while_it_is_read_is_refused(
    changeable: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = os.scandir

    def vanishing(path: os.PathLike[str]) -> object:
        monkeypatch.undo()
        shutil.rmtree(path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    with pytest.raises(ModelRefused, match="encoder is refused: its engine is missing"):
        changeable.engine_digest("encoder")


def test_versions_lie_side_by_side(changeable: ModelRepository) -> None:
    add_version(changeable.path, "encoder", "10")
    add_version(changeable.path, "encoder", "2", state="BUILT", reduced=True)
    add_version(changeable.path, "head")
    both = add_version(changeable.path, "both", steps={"encoder": "encoder-v10", "head": "head-v2"})
    assert changeable.models == ("both", "encoder", "head", "picky", "slow", "twin")
    assert changeable.versions("encoder") == ("1", "2", "10")
    assert [changeable.gate(folder).approved for folder in ("encoder", "encoder-v2", "encoder-v10")] == [
        True,
        False,
        True,
    ]
    assert changeable.versions("absent") == ()
    assert changeable.check(both.name).steps == ("encoder-v10", "head-v2")
    card = changeable.card("encoder-v10")
    assert (card.name, card.version.name, card.version.version) == ("encoder", "encoder", "10")
    assert card.version.engine_sha256 != changeable.card("encoder").version.engine_sha256
    shutil.copytree(changeable.path / "encoder-v10", changeable.path / "encoder-v3")
    with pytest.raises(ModelRefused, match=r"encoder-v3 is refused: its provenance\.json is of encoder version 10"):
        changeable.check("encoder-v3")
    (changeable.path / "encoder-v10" / "11").mkdir()
    with pytest.raises(
        ModelRefused, match=r"encoder-v10 is refused: it is version 10, and its version folder is 10, 11"
    ):
        changeable.check("encoder-v10")


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"state": "EXPORTED"}, "never executed.*EXPORTED"),
        ({"state": "PARSED"}, "never executed.*PARSED"),
        ({"state": "BUILT"}, "not approved"),
        ({"state": "BUILT", "reduced": True}, "too few tiles"),
        ({"reduced": True}, "APPROVED after a reduced comparison"),
        ({"passed": False}, "failed its gate"),
        ({"passed": False, "gates": [{"gate": "G3", "passed": False, "figures": {"flips": 0.1}}]}, "failed G3"),
        ({"gates": [{"gate": "G3", "passed": False}]}, "says passed, and G3 failed"),
        ({"gates": []}, "APPROVED without G0"),
        ({"state": "DONE"}, "state"),
        ({"passed": "true"}, "passed"),
        ({"model": "other"}, r"gate\.json is of other version 1"),
        ({"engine_sha256": "0" * 64}, "differ in engine_sha256"),
        ({"schema": "pathserve-gate-1"}, "schema"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_version_that_was_not_approved_is_refused(changeable: ModelRepository, gate: dict, words: str) -> None:
    seal(changeable.path / "encoder", **gate)
    with pytest.raises(ModelRefused, match=words):
        changeable.check("encoder")
    with pytest.raises(ModelRefused, match=words):
        changeable.check("both")
    assert changeable.check("head").name == "head"


def test_a_lower_precision_needs_its_comparison(changeable: ModelRepository) -> None:
    card = read(changeable.path / "encoder", "card.json")
    write(changeable.path / "encoder", "card.json", card | {"precision": "int8", "target": "cpu"})
    seal(changeable.path / "encoder", gates=[{"gate": "G0", "passed": True}, {"gate": "G3", "passed": None}])
    with pytest.raises(ModelRefused, match="APPROVED without G3"):
        changeable.check("encoder")
    seal(changeable.path / "encoder", gates=[{"gate": "G0", "passed": True}, {"gate": "G3", "passed": True}])
    assert changeable.check("encoder").name == "encoder"
    version = changeable.card("encoder").version
    assert (version.target, version.precision) == ("cpu", "int8")


def test_what_is_whole_but_not_approved_can_be_looked_at(changeable: ModelRepository) -> None:
    card = read(changeable.path / "encoder", "card.json")
    write(changeable.path / "encoder", "card.json", card | {"not_executed": "There was no GPU."})
    seal(changeable.path / "encoder", state="PARSED")
    assert changeable.verify("encoder").name == "encoder"
    assert changeable.gate("encoder").state == "PARSED"
    assert not changeable.gate("encoder").approved


@pytest.mark.parametrize(
    ("runtime", "artefact"),
    [
        ('backend: "openvino"', "model.xml"),
        ('backend: "openvino" default_model_filename: "model.onnx"', "model.onnx"),
        ('platform: "onnxruntime_onnx"', "model.onnx"),
        ('platform: "tensorrt_plan"', "model.plan"),
        ('backend: "tensorrt"', "model.plan"),
    ],
)
def test_the_engines_file_is_the_one_that_triton_takes(
    changeable: ModelRepository, runtime: str, artefact: str
) -> None:
    edit(changeable.path / "encoder" / "config.pbtxt", 'backend: "onnxruntime"', runtime)
    assert changeable.contract("encoder").artefact == artefact
    if artefact != "model.onnx":
        with pytest.raises(ModelRefused, match="engine file is missing"):
            changeable.check("encoder")
    seal(changeable.path / "encoder", state="PARSED")
    assert changeable.verify("encoder").artefact == artefact, "what was never built has no engine, and says so"


def test_an_engine_of_two_files_is_proven_whole(changeable: ModelRepository) -> None:
    folder = changeable.path / "encoder"
    edit(folder / "config.pbtxt", 'backend: "onnxruntime"', 'backend: "openvino"')
    (folder / "1" / "model.onnx").rename(folder / "1" / "model.xml")
    (folder / "1" / "model.bin").write_bytes(b"\0" * 100)
    seal(folder)
    assert changeable.check("encoder").artefact == "model.xml"
    lines = "\n".join(
        f"{name}:{hashlib.sha256((folder / '1' / name).read_bytes()).hexdigest()}"
        for name in ("model.bin", "model.xml")
    )
    assert changeable.engine_digest("encoder") == hashlib.sha256(lines.encode()).hexdigest()
    (folder / "1" / "model.bin").write_bytes(b"\0" * 99 + b"\1")
    with pytest.raises(ModelRefused, match=r"encoder is refused: its engine.*digest"):
        changeable.check("encoder")


def test_a_file_that_provenance_names_in_the_version_folder_is_no_engine(changeable: ModelRepository) -> None:
    folder = changeable.path / "encoder"
    (folder / "1" / "timing.cache").write_bytes(b"fast")
    with pytest.raises(ModelRefused, match=r"engine.*digest"):
        changeable.check("encoder")
    accept(folder, "1/timing.cache")
    assert changeable.check("encoder").name == "encoder"
    (folder / "1" / "timing.cache").write_bytes(b"slow")
    with pytest.raises(ModelRefused, match=r"its 1/timing\.cache is not the one"):
        changeable.check("encoder")


def test_an_exchanged_label_list_is_not_used_later_either(changeable: ModelRepository) -> None:
    folder = changeable.path / "encoder"
    assert changeable.check("encoder") == changeable.contract("encoder")
    assert changeable.card("encoder").labels[0].code.display == "Tissue"
    card = read(folder, "card.json")
    first, second = card["labels"][:2]
    first["code"], second["code"] = {"code": "1", "scheme": "SCT", "display": "Other"}, first["code"]
    write(folder, "card.json", card)
    for ask in (changeable.card, changeable.document, changeable.check):
        with pytest.raises(ModelRefused, match=r"encoder is refused: its card\.json is not the one"):
            ask("encoder")


def test_a_flip_is_seen_although_size_and_time_are_as_before(changeable: ModelRepository) -> None:
    artefact = changeable.path / "encoder" / "1" / "model.onnx"
    changeable.check("encoder")
    times, data = artefact.stat(), bytearray(artefact.read_bytes())
    data[len(data) // 2] ^= 1
    artefact.write_bytes(data)
    os.utime(artefact, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ModelRefused, match="digest"):
        changeable.check("encoder")


def test_an_unchanged_engine_is_not_read_again(changeable: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    whole = hashlib.file_digest

    def counted(stream, kind):
        hashed.append(Path(stream.name).name)
        return whole(stream, kind)

    monkeypatch.setattr(repository_module.hashlib, "file_digest", counted)
    monkeypatch.setattr(repository_module, "_YOUNG_S", -1.0)
    changeable.check("encoder")
    assert hashed.count("model.onnx") == 1
    changeable.check("encoder")
    changeable.card("encoder")
    assert hashed.count("model.onnx") == 1


@pytest.mark.parametrize("step", ["both", "other"], ids=["itself", "one that has it as a step"])
def test_an_ensemble_of_ensembles_is_refused(changeable: ModelRepository, step: str) -> None:
    models.write_ensemble(changeable.path, "other", "both", "head")
    config = changeable.path / "both" / "config.pbtxt"
    config.write_text(config.read_text().replace("encoder", step))
    accept(config.parent, config.name)
    with pytest.raises(ModelRefused, match=f"both is refused: its step {step} is an ensemble itself"):
        changeable.check("both")


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """The bytes with one bit flipped, or cut off, or with a few others in the middle."""
    place = int(random.integers(len(data)))
    match random.integers(3):
        case 0:
            return data[:place] + bytes([data[place] ^ 1 << int(random.integers(8))]) + data[place + 1 :]
        case 1:
            return data[:place]
        case _:
            return data[:place] + random.bytes(4) + data[place + 4 :]


@pytest.mark.parametrize("file", ["1/model.onnx", "card.json", "config.pbtxt", "golden.npz"])
def test_no_damage_to_a_sealed_file_is_taken(changeable: ModelRepository, file: str) -> None:
    path, random = changeable.path / "encoder" / file, np.random.default_rng(5)
    right = path.read_bytes()
    for _ in range(100):
        path.write_bytes(damaged(right, random))
        with pytest.raises(ModelRefused, match="encoder is refused"):
            changeable.check("encoder")
    path.write_bytes(right)
    assert changeable.check("encoder").name == "encoder"


@pytest.mark.parametrize("file", ["gate.json", "provenance.json"])
def test_no_damage_to_what_seals_changes_what_is_served(changeable: ModelRepository, file: str) -> None:
    """A figure or a tool's version may change in them: what the gateway acts on may not."""
    path, random = changeable.path / "encoder" / file, np.random.default_rng(6)
    right, card = path.read_bytes(), changeable.card("encoder")
    refused = 0
    for _ in range(300):
        path.write_bytes(damaged(right, random))
        try:
            changeable.check("encoder")
        except ModelRefused as error:
            refused += "encoder is refused" in error.detail
        else:
            assert changeable.card("encoder") == card
            assert changeable.gate("encoder").approved
    assert refused > 200


def test_an_ensemble_of_a_lower_precision_says_so(changeable: ModelRepository) -> None:
    add_version(changeable.path, "encoder")
    card = read(changeable.path / "encoder-v2", "card.json")
    write(changeable.path / "encoder-v2", "card.json", card | {"target": "cpu", "precision": "bf16"})
    seal(changeable.path / "encoder-v2")
    folder = add_version(changeable.path, "both", steps={"encoder": "encoder-v2"})
    assert changeable.check("both-v2").steps == ("encoder-v2", "head")
    version = changeable.card("both-v2").version
    assert (version.target, version.precision) == ("cpu", "bf16")
    write(folder, "card.json", read(folder, "card.json") | {"target": "onnx", "precision": "fp32"})
    seal(folder)
    with pytest.raises(ModelRefused, match=r"both-v2 is refused: .*least precise step"):
        changeable.check("both-v2")


def test_golden_answers_are_due_for_every_output(changeable: ModelRepository) -> None:
    folder = changeable.path / "encoder"
    edit(
        folder / "config.pbtxt",
        "output [",
        'output [ { name: "attention" data_type: TYPE_FP32 dims: [ 1 ] } ]\noutput [',
    )
    with pytest.raises(ModelRefused, match="it has to answer for each output"):
        changeable.golden("encoder")


@pytest.mark.parametrize("tolerance", ["much", None, 0, -1, float("inf"), float("nan")])
def test_a_tolerance_that_lets_everything_pass_is_refused(changeable: ModelRepository, tolerance: object) -> None:
    folder = changeable.path / "encoder"
    write(folder, "card.json", read(folder, "card.json") | {"golden_tolerance": tolerance})
    seal(folder)
    with pytest.raises(ModelRefused, match=r"golden_tolerance|no number"):
        changeable.golden("encoder")


@pytest.mark.parametrize("schema", ["", "{", '{"type": 5}', '{"$ref": "#/$defs/absent"}', '{"$ref": "urn:absent"}'])
def test_a_broken_schema_is_said_of_the_schema(changeable: ModelRepository, schema: str) -> None:
    (changeable.path / "card.schema.json").write_text(schema)
    with pytest.raises(ModelRefused, match=r"card\.schema\.json is no schema"):
        changeable.check("encoder")


def test_a_card_of_another_kind_than_the_config_is_refused(changeable: ModelRepository) -> None:
    write(changeable.path / "head", "card.json", read(changeable.path / "head", "card.json") | {"kind": "ensemble"})
    seal(changeable.path / "head")
    with pytest.raises(ModelRefused, match=r"head is refused: its card\.json calls it ensemble"):
        changeable.check("head")
