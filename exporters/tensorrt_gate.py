"""G2: TensorRT parses and builds the graph. With TensorRT and a GPU that makes the plan; without, TensorRT-RTX shows
that the graph can be built, and its engine is thrown away: it is no plan.

The builder is another process, since it can crash (exporters/tensorrt_builder.py).
"""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.errors import GateFailed
from exporters.tensorrt_config import Shapes

BUILDER = Path(__file__).with_name("tensorrt_builder.py")
OFFLINE = BUILDER.parents[1] / ".venv-tensorrt" / "bin" / "python"
"""The interpreter that has TensorRT-RTX (`make setup-tensorrt`): for development only, no part of the product."""
TIMEOUT_S = 3600.0

_SOURCE = re.compile(
    "|".join(
        (
            r"IBuilder::\w+: ",
            r"Error Code \d+: [\w ]+\((?!s\))",
            r"\[[^\]]*\.(?:cpp|h)\b[^\]]*\] ?",
            r"\.? ?\(?\b[Ii]n \w+ at /\S+",
            r"\(See http\S+[^)]*\)?",
        )
    )
)
"""Where in its own source code TensorRT stood: of no use to who reads the sentence."""


@dataclass(frozen=True, slots=True)
class Built:
    """What the builder says (`figures`), with the plan and the timing cache where TensorRT ran on a GPU.

    `reason` says why nothing was asked; there are no figures then.
    """

    figures: dict[str, Any]
    plan: bytes | None = None
    timing_cache: bytes | None = None
    reason: str | None = None


def g2_tensorrt(
    onnx: bytes, profile: Shapes, work: Path, *, here: Path = Path(sys.executable), offline: Path = OFFLINE
) -> Built:
    """Parse and build a strongly typed graph: by TensorRT in the interpreter `here`, else by TensorRT-RTX in `offline`.

    `work` is an empty folder. Raises GateFailed where the graph is refused, or where the builder crashes on it.
    """
    (work / "model.onnx").write_bytes(onnx)
    (work / "profiles.json").write_text(json.dumps([profile]))
    plan, cache = work / "model.plan", work / "timing.cache"
    report = _report(here, "tensorrt", work, "--engine", str(plan), "--timing-cache", str(cache))
    if report.get("refused_at") != "import":
        return Built(_figures(report), plan.read_bytes(), cache.read_bytes())
    if not offline.is_file():
        return Built({}, reason=_absent(report, "TensorRT-RTX is not installed: run make setup-tensorrt"))
    missing, report = report, _report(offline, "tensorrt_rtx", work)
    if report.get("refused_at") == "import":
        return Built({}, reason=_absent(missing, f"TensorRT-RTX cannot be imported ({report['message']})"))
    return Built(_figures(report))


def _absent(missing: dict[str, Any], more: str) -> str:
    return f"TensorRT cannot build here ({missing['message']}), and {more}."


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a build that went well. Raises GateFailed with the package's own words else."""
    stage = report.get("refused_at")
    if stage is None:
        return report
    said = " ".join(_SOURCE.sub("", str(report["message"])).split()).strip(". ")[:400]
    text = {
        "parse": "cannot parse the graph",
        "build": "parses the graph but cannot build it",
        "load": "builds the graph but cannot load the engine",
    }[stage]
    raise GateFailed(f"G2: {report['package']} {text}: {said}.", figures=report)


def _report(python: Path, package: str, work: Path, *more: str) -> dict[str, Any]:
    """The builder's report. Raises GateFailed where there is none."""
    report = work / f"{package}.json"
    arguments = ["--package", package, "--onnx", str(work / "model.onnx"), "--profiles", str(work / "profiles.json")]
    try:
        ended = subprocess.run(
            [str(python), "-P", str(BUILDER), *arguments, *more, "--report", str(report)],
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GateFailed(f"G2: {package} did not finish the graph within {TIMEOUT_S:.0f} s.") from None
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise GateFailed(f"G2: the builder of {package} crashed on the graph ({name}).")
    if ended.returncode or not report.is_file():
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]
        raise GateFailed(f"G2: the builder of {package} ended without a report ({said}).")
    found: dict[str, Any] = json.loads(report.read_text())
    return found
