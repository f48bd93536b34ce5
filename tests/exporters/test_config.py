"""config.pbtxt: what the classes say, Triton's own message reads; what does not join or fit is refused."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from exporters.config import Config, EnsembleConfig, OnnxRuntimeConfig, OpenVinoConfig, Step, check_config, joined
from exporters.errors import ExportError
from gateway.inference import contract as contracts
from gateway.inference.contract import Contract
from training.graphs import BATCH, Dim, TensorSpec

pytestmark = pytest.mark.training

IMAGE = TensorSpec("image", "UINT8", (224, 224, 3))
LOGITS = TensorSpec("logits", "FP32", (7,))
FEATURES = TensorSpec("features", "FP32", (1, Dim("tiles", 1, 4096, 20000), 1584))
CPU = model_config_pb2.ModelInstanceGroup.KIND_CPU


def parsed(config: Config) -> model_config_pb2.ModelConfig:
    check_config(config)
    return text_format.Parse(config.text(), model_config_pb2.ModelConfig())


def test_a_config_says_what_the_backend_needs() -> None:
    config = parsed(OnnxRuntimeConfig(name="m-v2", inputs=(IMAGE,), outputs=(LOGITS,), batch=BATCH))
    assert (config.name, config.backend, config.max_batch_size) == ("m-v2", "onnxruntime", 64)
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, CPU)
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert list(config.dynamic_batching.preferred_batch_size) == [32]
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.runtime


def test_free_sizes_are_minus_one_and_a_fixed_batch_is_not_batched() -> None:
    config = parsed(OnnxRuntimeConfig(name="m", inputs=(FEATURES,), outputs=(LOGITS,), batch=None))
    assert list(config.input[0].dims) == [1, -1, 1584]
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")


def test_openvino_is_told_its_file_precision_and_threads() -> None:
    config = parsed(
        OpenVinoConfig(name="m-v2", inputs=(IMAGE,), outputs=(LOGITS,), batch=BATCH, file="model.xml", precision="f32")
    )
    assert (config.backend, config.default_model_filename) == ("openvino", "model.xml")
    assert list(config.dynamic_batching.preferred_batch_size) == [32]
    assert config.parameters["INFERENCE_PRECISION_HINT"].string_value == "f32"
    assert config.parameters["INFERENCE_NUM_THREADS"].string_value == "1"
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, CPU)


def ensemble(*steps: Step, inputs: tuple[TensorSpec, ...] = (IMAGE,)) -> EnsembleConfig:
    return EnsembleConfig(name="e", steps=steps, inputs=inputs, outputs=(LOGITS,), max_batch_size=64)


def test_an_ensemble_hands_each_output_to_the_steps_that_take_it() -> None:
    text = TensorSpec("text", "FP32", (8,))
    config = parsed(
        ensemble(
            Step("a-v2", ("image",), ("x", "y")),
            Step("b", ("x", "text"), ("z",)),
            Step("c", ("y", "z"), ("logits",)),
            inputs=(IMAGE, text),
        )
    )
    maps = [
        (step.model_name, sorted(step.input_map), sorted(step.output_map)) for step in config.ensemble_scheduling.step
    ]
    assert maps == [("a-v2", ["image"], ["x", "y"]), ("b", ["text", "x"], ["z"]), ("c", ["y", "z"], ["logits"])]
    assert all(
        key == value
        for step in config.ensemble_scheduling.step
        for names in (step.input_map, step.output_map)
        for key, value in names.items()
    )


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ((Step("a", ("image", "text"), ("logits",)),), "nothing gives text to a"),
        ((Step("a", ("image",), ("x",)),), "no step gives logits"),
        ((Step("a", ("image",), ("logits",)), Step("b", ("image",), ("logits",))), "b gives logits, which is there"),
        ((Step("a", (), ("logits",)),), "no step takes image"),
    ],
)
def test_steps_that_do_not_join_are_refused(steps: tuple[Step, ...], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        check_config(ensemble(*steps))


def contract(name: str, inputs: dict[str, int], outputs: dict[str, int], batch: int = 64) -> Contract:
    """A model whose tensors are FP32 vectors of these sizes."""
    given, made = (
        tuple(contracts.TensorSpec(key, "FP32", (size,)) for key, size in each.items()) for each in (inputs, outputs)
    )
    return Contract(name, given, made, batch, 1, (), "model.onnx")


def test_models_are_joined_by_the_names_of_their_tensors() -> None:
    image = contract("image-v2", {"pixels": 8}, {"coarse": 2, "fine": 4})
    masks = contract("masks", {"coarse": 2, "fine": 4, "text": 3}, {"mask": 8}, batch=16)
    config = joined("both-v2", [image, masks])
    assert config == EnsembleConfig(
        name="both-v2",
        steps=(Step("image-v2", ("pixels",), ("coarse", "fine")), Step("masks", ("coarse", "fine", "text"), ("mask",))),
        inputs=(TensorSpec("pixels", "FP32", (8,)), TensorSpec("text", "FP32", (3,))),
        outputs=(TensorSpec("mask", "FP32", (8,)),),
        max_batch_size=16,
    )


def test_tensors_of_one_name_must_be_alike() -> None:
    encoder, head = (
        contract("encoder", {"image": 8}, {"embedding": 4}),
        contract("head", {"embedding": 5}, {"logits": 3}),
    )
    with pytest.raises(ExportError, match=r"head takes embedding as FP32 \[5\], and a model before it FP32 \[4\]"):
        joined("both", [encoder, head])


def test_a_batch_of_one_model_is_none_of_another() -> None:
    models = [
        contract("encoder", {"image": 8}, {"features": 4}),
        contract("bag", {"features": 4}, {"logits": 3}, batch=0),
    ]
    with pytest.raises(ExportError, match="Of encoder, bag some take batches and some do not"):
        joined("both", models)


def test_a_step_that_nothing_joins_is_refused_as_it_gives_nothing_new() -> None:
    twice = contract("again", {"image": 8}, {"embedding": 4})
    with pytest.raises(ExportError, match="again gives embedding, which is there already"):
        joined("both", [contract("encoder", {"image": 8}, {"embedding": 4}), twice])


def test_a_config_that_triton_cannot_read_is_refused() -> None:
    image = TensorSpec("image", "UINT24", (3,))
    with pytest.raises(ExportError, match="not one that Triton reads"):
        check_config(OnnxRuntimeConfig(name="m", inputs=(image,), outputs=(LOGITS,), batch=BATCH))
