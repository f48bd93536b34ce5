"""An ONNX file to a TensorRT engine: a script for the interpreter that has TensorRT, or TensorRT-RTX, installed.

    python3 -P exporters/tensorrt_builder.py --package tensorrt --onnx model.onnx --profiles profiles.json \
        --engine model.plan --timing-cache timing.cache --report report.json

It needs nothing but the standard library and that package (both have the same API), so that it runs in NVIDIA's
container as it is. `-P`: the folder of this file holds a module named `tensorrt`. It is always its own process, because
the builder can crash where there is no GPU. The report says what was built, or at which stage and why it was not;
the exit status is 0 when there is a report.

Every engine is strongly typed (the precision is in the graph), without TF32, and, where the version has the flag,
computed in the same way for each item of a batch (BuilderFlag.DISTRIBUTIVE_INDEPENDENCE).
"""

import argparse
import ctypes
import hashlib
import importlib
import json
import os
import sys
import time
from pathlib import Path

OFFLINE_CAPABILITY = "SM89"
"""What TensorRT-RTX builds for where there is no GPU: the least of its targets that has fp8. SM90 is not among them."""
SUFFIX = {"tensorrt": ".plan", "tensorrt_rtx": ".rtx_aot"}
"""An engine of TensorRT-RTX is no plan that Triton can serve, so it never bears that name."""


class Refused(Exception):
    """`stage` is import, parse, build or load; the message is the package's own."""

    def __init__(self, stage, message):
        super().__init__(message)
        self.stage = stage


def main(arguments=None):
    """0 when the report is written, whatever it says."""
    parser = argparse.ArgumentParser(prog="tensorrt_builder.py")
    parser.add_argument("--package", choices=["tensorrt", "tensorrt_rtx"], required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--profiles", type=Path, required=True, help='[{"image": [[least], [usual], [most]]}, …]')
    parser.add_argument("--engine", type=Path, help="keep the engine here")
    parser.add_argument("--timing-cache", type=Path, help="read it where it is there, write it after the build")
    parser.add_argument("--report", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    if chosen.engine is not None and chosen.engine.suffix != SUFFIX[chosen.package]:
        parser.error(f"an engine of {chosen.package} is named *{SUFFIX[chosen.package]}")
    report = {"package": chosen.package}
    try:
        report |= build(
            chosen.package,
            chosen.onnx.read_bytes(),
            json.loads(chosen.profiles.read_text()),
            engine=chosen.engine,
            timing_cache=chosen.timing_cache,
        )
    except Refused as refusal:
        report |= {"refused_at": refusal.stage, "message": str(refusal)}
    write(chosen.report, json.dumps(report, indent=2).encode())
    return 0


def build(package, onnx, profiles, *, engine=None, timing_cache=None):
    """Figures of the build. Raises Refused."""
    try:
        trt = importlib.import_module(package)
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # libraries missing, or of another version
        raise Refused("import", str(error)) from None
    gpu = find_gpu()
    if package == "tensorrt" and gpu is None:
        # The builder of the full package needs the GPU that the engine is for, and its runtime crashes without one.
        raise Refused("import", "there is no NVIDIA GPU with a working driver here")
    log = logger(trt)
    builder = trt.Builder(log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise Refused("parse", "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    independence = getattr(trt.BuilderFlag, "DISTRIBUTIVE_INDEPENDENCE", None)
    if independence is not None:
        config.set_flag(independence)
    add_profiles(builder, network, config, profiles)
    if package == "tensorrt_rtx" and gpu is None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, OFFLINE_CAPABILITY), 0)
    if package == "tensorrt_rtx":
        timing_cache = None  # it times nothing when it builds
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    start = time.perf_counter()
    built = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if built is None:
        raise Refused("build", log.said())
    plan = bytes(built)
    loaded = None if gpu is None else load(trt, log, plan)
    if engine is not None:
        write(engine, plan)
    if timing_cache is not None:
        write(timing_cache, bytes(config.get_timing_cache().serialize()))
    return {
        "version": trt.__version__,
        "network_layers": network.num_layers,
        "inputs": describe(network.get_input, network.num_inputs),
        "outputs": describe(network.get_output, network.num_outputs),
        "profiles": profiles,
        "strongly_typed": True,
        "tf32": False,
        "distributive_independence": independence is not None,
        "built_for": f"the compute capability {gpu['compute_capability']}" if gpu else OFFLINE_CAPABILITY,
        "gpu": gpu,
        "build_s": round(seconds, 2),
        "engine_bytes": len(plan),
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "loaded": loaded,
    }


def add_profiles(builder, network, config, profiles):
    """One optimisation profile for each entry; every dynamic input needs its least, usual and greatest shape."""
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            name = network.get_input(index).name
            if name in shapes:
                try:
                    profile.set_shape(name, *map(tuple, shapes[name]))
                except ValueError as error:
                    raise Refused("build", f"the profile of {name}: {error}") from None
        if config.add_optimization_profile(profile) < 0:
            raise Refused("build", "an optimisation profile does not fit the graph's inputs")


def load(trt, log, plan):
    """True when the fresh engine deserialises on this GPU. Raises Refused."""
    runtime = trt.Runtime(log)
    engine = None if runtime is None else runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise Refused("load", log.said())
    return True


def describe(tensor, count):
    tensors = [tensor(index) for index in range(count)]
    return {item.name: {"datatype": item.dtype.name, "dims": list(item.shape)} for item in tensors}


def find_gpu():
    """Name, compute capability and driver of the first GPU by the CUDA driver itself; None where it does not answer."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, driver, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    calls = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDriverGetVersion(ctypes.byref(driver)),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device),  # COMPUTE_CAPABILITY_MAJOR
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),  # COMPUTE_CAPABILITY_MINOR
    )
    if any(call() != 0 for call in calls):
        return None
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": f"{major.value}.{minor.value}",
        "cuda_driver": f"{driver.value // 1000}.{driver.value % 1000 // 10}",
    }


def logger(trt):
    """A logger that remembers the package's errors."""

    class Log(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.lines = []

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(message)

        def said(self):
            return self.lines[-1] if self.lines else "no message"

    return Log()


def write(path, data):
    """All of a file or nothing: under another name first."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
