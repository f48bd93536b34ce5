"""The repository refuses by name what it cannot prove."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gateway.inference import ModelRepository
from gateway.operations.errors import InferenceError, ModelNotLoaded, ModelRefused

from . import models


@pytest.fixture
def changeable(repository: Path, tmp_path: Path) -> ModelRepository:
    """A copy of the repository that a test may spoil."""
    shutil.copytree(repository, tmp_path / "models")
    return ModelRepository(tmp_path / "models")


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_every_model_is_listed_and_sound(repository: Path) -> None:
    read = ModelRepository(repository)
    assert read.names == ("both", "encoder", "head", "picky", "slow", "twin")
    assert [read.check(name).name for name in read.names] == list(read.names)


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
        (lambda card: card.pop("digests"), "digests"),
        (lambda card: card["digests"].pop("weights_sha256"), "weights_sha256"),
        (lambda card: card.update(version="2"), "version 2"),
        (lambda card: card["labels"][0].pop("code"), "code"),
    ],
)
def test_a_card_not_as_agreed_is_refused(changeable: ModelRepository, change, words: str) -> None:
    file = changeable.path / "encoder" / "card.json"
    card = json.loads(file.read_text())
    change(card)
    file.write_text(json.dumps(card))
    with pytest.raises(ModelRefused, match=words):
        changeable.check("encoder")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_card_that_is_no_json_object_is_refused(changeable: ModelRepository, text: str) -> None:
    (changeable.path / "encoder" / "card.json").write_text(text)
    with pytest.raises(ModelRefused, match="encoder"):
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
    (changeable.path / "encoder" / "1").rmdir()
    with pytest.raises(ModelRefused, match="no version folder"):
        changeable.check("encoder")


@pytest.mark.parametrize("name", ["m$(touch X)", "../encoder", "a b", "a;b", "", ".", "encoder\n", "`id`", "ü"])
def test_a_name_that_a_shell_could_run_is_refused(changeable: ModelRepository, name: str) -> None:
    with pytest.raises(ModelRefused, match="letters, digits"):
        changeable.check(name)


def test_a_folder_with_such_a_name_is_not_listed(changeable: ModelRepository) -> None:
    shutil.copytree(changeable.path / "encoder", changeable.path / "m$(touch X)")
    assert changeable.names == ("both", "encoder", "head", "picky", "slow", "twin")


def test_a_step_with_such_a_name_is_refused(changeable: ModelRepository) -> None:
    edit(changeable.path / "both" / "config.pbtxt", 'model_name: "encoder"', 'model_name: "m$(touch X)"')
    with pytest.raises(ModelRefused, match="letters, digits"):
        changeable.check("both")


def test_golden_answers_are_read_and_broken_ones_refused(changeable: ModelRepository) -> None:
    golden = changeable.golden("encoder")
    assert golden is not None
    assert golden.inputs["image"].shape == (3, 64, 64, 3)
    assert golden.expected["embedding"].shape == (3, 8)
    assert changeable.golden("head") is None
    file = changeable.path / "encoder" / "golden.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelRefused, match=r"golden\.npz cannot be read"):
        changeable.golden("encoder")
    np.savez(file, image=models.tiles(1))
    with pytest.raises(ModelRefused, match=r"golden\.npz does not fit"):
        changeable.golden("encoder")


def test_an_unreadable_repository_holds_no_models(tmp_path: Path) -> None:
    assert ModelRepository(tmp_path / "nowhere").names == ()


def test_a_batch_is_checked_against_the_contract(repository: Path) -> None:
    contract = ModelRepository(repository).contract("encoder")
    contract.check({"image": models.tiles(64)})
    with pytest.raises(InferenceError, match=r"UINT8 \(B, 64, 64, 3\), not uint8 \(64, 64, 3\)"):
        contract.check({"image": models.tiles(1)[0]})
