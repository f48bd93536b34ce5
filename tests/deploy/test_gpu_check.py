"""The GPU check without a GPU: its arithmetic, its thresholds, its stages' isolation, its states and its page."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "gpu-check"
pytestmark = pytest.mark.training

sys.path.insert(0, str(FOLDER))
import compare  # noqa: E402
import engines  # noqa: E402
import gpu_check  # noqa: E402
import machine  # noqa: E402
import pack  # noqa: E402
import page  # noqa: E402
import served  # noqa: E402
import stages  # noqa: E402
import tileset  # noqa: E402
import vit  # noqa: E402
from record import Clock, Record, Rows, last_line  # noqa: E402

CPU = torch.device("cpu")


def rows_of(path: Path, seconds: float = 60) -> Rows:
    return Rows(path / "rows.jsonl", Clock.of(seconds))


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]


# --- the ViTs -------------------------------------------------------------------------------------------------------


def test_operations_are_those_of_the_geometry() -> None:
    """By hand for ViT-S/16: 12 · (24·197·384² + 4·197²·384) + 2·196·768·384 = 9.20 GFLOP; ViT-L/14: 162.0 GFLOP."""
    assert vit.VIT_S16.flops == 12 * (24 * 197 * 384**2 + 4 * 197**2 * 384) + 2 * 196 * 768 * 384
    assert vit.VIT_S16.flops / 1e9 == pytest.approx(9.20, abs=0.005)
    assert vit.VIT_L14.flops / 1e9 == pytest.approx(162.0, abs=0.05)


def test_operations_agree_with_torch_counter() -> None:
    model, counter = vit.build(vit.VIT_TINY), FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, 56, 56, 3, dtype=torch.uint8))
    padding = 2 * vit.VIT_TINY.patches * (-588 % 16) * vit.VIT_TINY.dim
    assert counter.get_total_flops() - padding == vit.VIT_TINY.flops


def test_large_vit_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert sum(value.numel() for value in vit.ViT(vit.VIT_L14).parameters()) == 303_227_904


def test_folded_layer_scale_is_the_same_function() -> None:
    image = torch.from_numpy(tileset.noise(3, 56).images_NHWC)
    with torch.inference_mode():
        before = vit.build(vit.VIT_TINY)(image)
        after = vit.fold_layer_scale(vit.build(vit.VIT_TINY))(image)
    torch.testing.assert_close(after, before, rtol=0, atol=5e-6)


def test_every_block_counts() -> None:
    """Parity would be blind if LayerScale kept its initial 1e-5."""
    image = torch.from_numpy(tileset.noise(2, 56).images_NHWC)
    with torch.inference_mode():
        model = vit.build(vit.VIT_TINY)
        before = model(image)
        model.blocks[0].fc2.weight.zero_()
        assert compare.parity_failures(compare.parity(model(image), before), "bf16")


# --- when two engines agree -----------------------------------------------------------------------------------------


def test_parity_is_of_the_worst_sample() -> None:
    reference = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    found = reference.clone()
    assert compare.parity_failures(compare.parity(found, reference), "fp32") == []
    found[57] = found[57].flip(0)
    figures = compare.parity(found, reference)
    assert figures["min_cosine"] < 0.9
    assert compare.parity_failures(figures, "fp16")


def test_nan_never_passes() -> None:
    reference = torch.ones(2, 4)
    found = reference.clone()
    found[0, 0] = float("nan")
    assert compare.parity_failures(compare.parity(found, reference), "bf16") == ["NaN or infinite values"]


def test_flips_and_crossings() -> None:
    def logits(*tops: float) -> torch.Tensor:
        return torch.tensor([[np.log(top / (1 - top)), 0.0] for top in tops])

    reference = logits(0.9, 0.751, 0.60, 0.80)
    same = compare.agreement(reference, reference, 0.75)
    assert compare.agreement_failures(same, "fp16") == []
    near = compare.agreement(logits(0.9, 0.749, 0.60, 0.80), reference, 0.75)
    assert (near["crossings"], near["crossings_outside"]) == (1, 0)
    assert compare.agreement_failures(near, "fp16") == []
    far = compare.agreement(logits(0.9, 0.751, 0.60, 0.70), reference, 0.75)
    assert far["crossings_outside"] == 1
    assert compare.agreement_failures(far, "fp16")
    flipped = compare.agreement(logits(0.1, 0.751, 0.60, 0.80), reference, 0.75)
    assert flipped["answered_flips"] == flipped["flips"] == 1
    assert len(compare.agreement_failures(flipped, "fp16")) == 2


def test_invariance_sees_a_neighbour() -> None:
    """A scale taken over the whole batch, as dynamic int8 does, is found; a network of its own image is not."""
    images = torch.from_numpy(tileset.noise(4, 8).images_NHWC)

    def honest(image: torch.Tensor) -> torch.Tensor:
        return image.float().flatten(1)[:, :16]

    def batch_scaled(image: torch.Tensor) -> torch.Tensor:
        return honest(image) / image.float().mean()

    assert compare.invariance_failures(compare.invariance(honest, images), "fp32") == []
    images[1:] //= 2
    images[-1] //= 3
    figures = compare.invariance(batch_scaled, images)
    assert figures["size"] > 0
    assert compare.invariance_failures(figures, "fp16")
    neighbours = compare.invariance(lambda image: honest(image) + image[-1].float().mean(), images)
    assert neighbours["neighbours"] > 0
    assert any("neighbours" in text for text in compare.invariance_failures(neighbours, "bf16"))


# --- the served encoder ---------------------------------------------------------------------------------------------


def test_safetensors_by_hand_equals_the_library(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b.c": torch.randn(7).half(),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "d": torch.randn(2, 2).bfloat16(),
    }
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = served.read_safetensors(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


@pytest.fixture(scope="module")
def model() -> served.Served:
    return served.open_served(ROOT, CPU)


def test_served_model_opens_and_equals_its_golden_outputs(model: served.Served) -> None:
    with torch.inference_mode():
        figures = served.golden_parity(model, model.encoder, CPU)
    assert compare.parity_failures(figures, "fp32") == []


def test_folding_norms_keeps_the_function(model: served.Served) -> None:
    image = torch.from_numpy(tileset.noise(1, 224).images_NHWC)
    with torch.inference_mode():
        folded = served.lower(model.encoder, torch.float32)
        assert not [part for part in folded.modules() if isinstance(part, torch.nn.BatchNorm2d)]
        assert compare.parity_failures(compare.parity(folded(image), model.encoder(image)), "fp32") == []


def test_a_cpu_never_approves(tmp_path: Path, model: served.Served) -> None:
    with torch.inference_mode():
        reference = served.Reference.compute(model, tileset.noise(3, 224), CPU)
        served.judge(rows_of(tmp_path), model, reference, model.encoder, "fp32", "fp32", CPU, batch=2)
    (entry,) = read_rows(tmp_path)
    assert entry["row"]["state"] == "not run"
    assert "no GPU" in entry["row"]["reason"]
    assert entry["row"]["gates"]["G3"]["flips"] == 0


@pytest.mark.parametrize(
    ("failures", "count", "real", "golden", "state", "words"),
    [
        ([], 5230, True, True, "APPROVED", ""),
        ([], 5230, False, True, "BUILT", "noise"),
        ([], 70, True, True, "BUILT", "reduced"),
        ([], 5230, True, False, "BUILT", "golden"),
        (["G3: label flips 2 % > 0.1 %"], 5230, True, True, "BUILT", "label flips"),
    ],
)
def test_states(failures: list[str], count: int, real: bool, golden: bool, state: str, words: str) -> None:
    found, reason = served.earned(failures, count, real, golden, torch.device("cuda"))
    assert found == state
    assert words in reason


def test_missing_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(served.Unusable, match="cannot be read"):
        served.open_served(tmp_path, CPU)


# --- the tiles ------------------------------------------------------------------------------------------------------


def test_packed_tiles_come_back(tmp_path: Path) -> None:
    images = tileset.noise(5, 224).images_NHWC
    jpegs = [simplejpeg.encode_jpeg(image, quality=95) for image in images]
    arrays = pack.pack({"one": [(jpegs[0], 3), (jpegs[1], 0)], "two": [(data, -1) for data in jpegs[2:]]})
    np.savez(tmp_path / "tiles.npz", **arrays)
    found = tileset.load(tmp_path / "tiles.npz")
    assert found.images_NHWC.shape == (5, 224, 224, 3)
    assert found.labels_N.tolist() == [3, 0, -1, -1, -1]
    assert found.describe() == {"tiles": 5, "real": True, "sources": {"one": 2, "two": 3}}
    worst = np.abs(found.images_NHWC.astype(int) - simplejpeg.decode_jpeg(jpegs[0]).astype(int)[None])[0].max()
    assert worst <= 4  # two decoders may round differently


def test_cut_gives_whole_tiles_without_overlap() -> None:
    image = np.arange(500 * 700 * 3, dtype=np.uint32).reshape(500, 700, 3)
    tiles = list(pack.cut(image))
    assert len(tiles) == 2 * 3
    assert len({int(tile[0, 0, 0]) for tile in tiles}) == 6


# --- clock, stages, page --------------------------------------------------------------------------------------------


def stage_script(tmp_path: Path, body: str) -> list[str]:
    """A stage of its own: writes one row, then does what `body` says."""
    script = tmp_path / "stage.py"
    script.write_text(
        "import argparse, json, os, sys, time\n"
        "p = argparse.ArgumentParser()\n"
        "for name in ('--stage', '--lines', '--end'): p.add_argument(name)\n"
        "a = p.parse_args()\n"
        "open(a.lines, 'a').write(json.dumps({'section': 'found', 'row': {'n': 1}}) + '\\n')\n" + body
    )
    return [sys.executable, str(script)]


@pytest.mark.parametrize(
    ("body", "state", "words"),
    [
        ("pass", "done", ""),
        ("raise SystemExit('a sentence')", "failed", "a sentence"),
        ("os.abort()", "failed", "SIGABRT"),
        ("open(a.lines, 'a').write('{\"section\": \"fou'); time.sleep(60)", "cut", "time"),
    ],
)
def test_a_stage_keeps_its_rows_however_it_ends(tmp_path: Path, body: str, state: str, words: str) -> None:
    record = Record(tmp_path / "out" / "r.json", {"schema": "x"})
    started = time.monotonic()
    record.run("one", stage_script(tmp_path, body), Clock.of(2), tmp_path)
    assert time.monotonic() - started < 50
    saved = json.loads((tmp_path / "out" / "r.json").read_text())
    assert saved["found"] == [{"stage": "one", "n": 1}]
    assert saved["stages"][0]["state"] == state
    assert words in saved["stages"][0]["reason"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r.json"]


def test_a_stage_without_time_is_not_started(tmp_path: Path) -> None:
    record = Record(tmp_path / "r.json", {})
    record.run("late", [sys.executable, "-c", "raise SystemExit(1)"], Clock.of(0.5), tmp_path)
    assert record.value["stages"] == [{"name": "late", "state": "skipped", "seconds": 0, "reason": "time: none left"}]


def test_a_failing_part_does_not_end_its_stage(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 5)
    with rows.attempt("a part"):
        raise ValueError("no kernel at /opt/some/where/file.cu for it")
    assert not rows.has_time("a long part", 50)
    skipped = [entry["row"] for entry in read_rows(tmp_path)]
    assert skipped[0] == {"what": "a part", "reason": "ValueError: no kernel at file.cu for it"}
    assert skipped[1]["reason"].startswith("time: ")


def test_last_line_holds_no_path() -> None:
    assert last_line("Traceback\n  File x\n\nOSError: /tmp/a/b/c.so is broken\n\n") == "OSError: c.so is broken"
    assert last_line("") == "no message"


def test_shares_are_of_the_largest_square_peak() -> None:
    record = {
        "machine": [{"gpu": "some GPU"}],
        "matmul": [
            {"dtype": "bf16", "square": True, "tflops": 700.0},
            {"dtype": "bf16", "square": True, "tflops": 800.0},
            {"dtype": "bf16", "square": False, "tflops": 900.0},
        ],
        "vit": [{"dtype": "bf16", "tflops": 480.0}, {"dtype": "fp16", "tflops": 1.0}],
        "stages": [{"name": name, "state": "skipped", "seconds": 0, "reason": "r"} for name in gpu_check.STAGES],
    }
    gpu_check.finish(record)
    assert record["vit"] == [{"dtype": "bf16", "tflops": 480.0, "peak_share": 0.6}, {"dtype": "fp16", "tflops": 1.0}]
    assert [row["state"] for row in record["artefacts"]] == ["not run"] * len(gpu_check.ARTEFACTS)


def test_tf32_evidence_tells_fp32_from_less() -> None:
    assert machine.tf32_evidence(CPU, 128)["off"]
    rounded = torch.randn(64, 64).bfloat16().float()
    assert float((rounded - torch.randn(64, 64)).norm()) > 2e-5


def test_page_in_the_repository_is_current() -> None:
    found = page.read(ROOT / "docs" / "results" / "gpu-check.json")
    assert (ROOT / "docs" / "results" / "gpu.md").read_text(encoding="utf-8") == page.render(found)


def test_page_without_a_run_claims_nothing() -> None:
    text = page.render(None)
    assert "not run" in text
    assert "images/s" not in text


def test_self_test_runs_every_stage_that_needs_no_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu-check.json"
    command = [sys.executable, str(FOLDER / "gpu_check.py"), "--self-test", "--seconds", "150", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    record = json.loads(out.read_text())
    states = {stage["name"]: stage["state"] for stage in record["stages"]}
    assert states.keys() == gpu_check.STAGES.keys()
    assert {name for name, state in states.items() if state == "done"} == {"machine", "served", "vit_l"}
    assert {row["state"] for row in record["artefacts"]} == {"not run"}
    assert all(control["refused"] for control in record["controls"])
    assert {row["artefact"] for row in record["artefacts"]} >= {"torch fp32, eager", "torch bf16, eager"}
    assert record["onnx_parity"][0]["failures"] == []
    assert record["self_test"]
    assert record["used_s"] <= 150
    assert "Self-test" in ended.stdout
    assert str(ROOT) not in out.read_text()


def test_flow_of_the_stages_that_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row that a GPU would give, with torch's compilers and CUDA graphs left out: nothing is skipped or fails."""
    from training.nn.tile_encoder import TileEncoder
    from training.tissue.model import TissueHead

    torch.manual_seed(0)
    networks = [network.eval().requires_grad_(False) for network in (TileEncoder(), TissueHead(7))]
    model = served.Served(*networks, 0.75, tmp_path, {})
    monkeypatch.setattr(stages.Job, "compiles", True)
    monkeypatch.setattr(stages, "BATCHES", (1, 2, 3))
    monkeypatch.setattr(served, "BATCH", 2)
    monkeypatch.setattr(served, "open_served", lambda root, device: model)
    monkeypatch.setattr(tileset, "load", lambda path, side_px=48, most=None: tileset.noise(3, min(side_px, 56)))
    monkeypatch.setattr(machine, "DTYPES", {"fp16": torch.float32, "bf16": torch.float32})
    monkeypatch.setattr(machine, "median_ms", lambda run, device, seconds=0: {"ms": 1.0 + 0 * len(str(run()))})
    monkeypatch.setattr(engines, "median_ms", machine.median_ms)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    for name in ("compile_blocks", "compile_whole"):
        monkeypatch.setattr(engines, name, lambda network, mode="": network)
    monkeypatch.setattr(engines, "graph", lambda engine, example: engine)

    def package(network: torch.nn.Module, example: torch.Tensor, most: int, path: Path) -> torch.nn.Module:
        path.write_bytes(b"package")
        return network

    monkeypatch.setattr(engines, "package", package)
    monkeypatch.setattr(vit, "VIT_S16", vit.VIT_TINY)
    monkeypatch.setattr(vit, "VIT_L14", vit.VIT_TINY)
    job = stages.Job(rows_of(tmp_path, 3600), CPU, tmp_path, tmp_path, tiny=False)
    stages.run_served(job)
    stages.run_vit(job, vit.VIT_TINY)
    stages.run_package(job)
    stages.run_tuned(job, vit.VIT_TINY)
    stages.run_vit_packages(job)
    found = read_rows(tmp_path)
    skipped = {entry["row"]["what"] for entry in found if entry["section"] == "skipped"}
    assert skipped <= {"fp32 against ONNX Runtime", "cuDNN's attention"}  # neither is there on a CPU
    engines_seen = {entry["row"]["engine"] for entry in found if entry["section"] == "vit"}
    assert engines_seen == {
        "eager", "blocks compiled", "blocks compiled, graph", "blocks compiled, tuned", "whole compiled", "AOTInductor"
    }  # fmt: skip
    artefacts = {entry["row"]["artefact"] for entry in found if entry["section"] == "artefacts"}
    assert "torch fp16, AOTInductor package" in artefacts
    assert "torch bf16, compiled, batch 2 fixed" in artefacts
