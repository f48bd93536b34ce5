"""`make demo`: a slide in a PACS, an order over REST, a report back; on loopback, and stopped again at the end."""

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pydicom
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.archive import open_archive

ROOT = Path(__file__).parents[2]
ORTHANC_CONFIGURATION = ROOT / "deploy" / "orthanc" / "orthanc.json"
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
OUT = ROOT / "build" / "demo"
START_S = 120.0

console = Console()
http = httpx.Client(trust_env=False, timeout=60)  # everything is on loopback: no proxy of the environment


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Gateway:
    """The running gateway and how to speak to it."""

    url: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path, default=ROOT / "tests" / "data" / "cmu_small_he")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(arguments.slide, keep=arguments.keep)
    except DemoError as error:
        console.print(f"[red]demo: {error}[/red]", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped.")
        return 130
    return 0


def run(slide: Path, *, keep: bool) -> None:
    images = slide_images(slide)
    with ExitStack() as stack:
        work = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="pathserve-demo-", ignore_cleanup_errors=True))
        )
        images = identified(images, work)
        headers = list(images.values())
        archive = stack.enter_context(pacs(work, list(images)))
        gateway = stack.enter_context(running_gateway(work, archive))
        analysis = place_order(gateway, headers)
        follow(gateway, analysis)
        show(gateway, analysis, archive, headers[0].StudyInstanceUID)
        if keep:
            console.print(f"\nGateway  {gateway.url}  (Authorization: Bearer {gateway.key})", soft_wrap=True)
            console.print(f"Archive  {archive}", soft_wrap=True)
            console.print("Running until Ctrl-C.")
            signal.pause()


def slide_images(slide: Path) -> dict[Path, pydicom.Dataset]:
    """The slide's image files with their headers."""
    if not slide.is_dir():
        raise DemoError(f"{slide} is not a folder. Call make demo SLIDE=folder-of-dicom.")
    found: dict[Path, pydicom.Dataset] = {}
    for path in sorted(slide.rglob("*")):
        if path.is_file() and pydicom.misc.is_dicom(path):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if header.get("Modality") == "SM":
                found[path] = header
    if not found:
        raise DemoError(f"{slide} holds no DICOM slide (modality SM). Call make demo SLIDE=folder-of-dicom.")
    if len({header.StudyInstanceUID for header in found.values()}) > 1:
        raise DemoError(f"{slide} holds slides of several studies; name the folder of one.")
    return found


def identified(images: dict[Path, pydicom.Dataset], work: Path) -> dict[Path, pydicom.Dataset]:
    """The images; where headers lack what an order must name, copies with invented identifiers (the demo's own PACS
    gets those): an order that names no patient, accession or container is held until a person releases it."""
    wanted = ("PatientID", "AccessionNumber", "ContainerIdentifier")
    if all(header.get(keyword) for header in images.values() for keyword in wanted):
        return images
    console.print("The slide's header names no patient, accession or container; a copy gets invented ones.")
    series = sorted({str(header.SeriesInstanceUID) for header in images.values()})
    copies: dict[Path, pydicom.Dataset] = {}
    (work / "identified").mkdir()
    for number, path in enumerate(images):
        image = pydicom.dcmread(path)
        container = f"DEMO-{series.index(str(image.SeriesInstanceUID)) + 1}"
        for keyword, value in zip(wanted, ("DEMO", "DEMO", container), strict=True):
            if not image.get(keyword):
                setattr(image, keyword, value)
        copy = work / "identified" / f"{number}.dcm"
        image.save_as(copy)
        copies[copy] = pydicom.dcmread(copy, stop_before_pixels=True)
    return copies


@contextmanager
def pacs(work: Path, files: list[Path]) -> Iterator[str]:
    """A PACS that holds the slide: Orthanc where it is installed, else a folder. Yields its archive address."""
    binary = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if binary is None or not ORTHANC_PLUGIN.exists():
        console.print("Orthanc is not installed (Debian: orthanc orthanc-dicomweb); a folder takes the PACS's place.")
        folder = work / "pacs"
        folder.mkdir()
        for number, path in enumerate(files):
            shutil.copyfile(path, folder / f"{number}.dcm")
        yield f"folder:{folder}"
        return
    (work / "orthanc").mkdir()
    port = free_port()
    password = secrets.token_urlsafe(12)
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PACS_STORAGE": str(work / "orthanc"),
        "PACS_HTTP_PORT": str(port),
        "PACS_USER": "pathserve",
        "PACS_PASSWORD": password,
    }
    with child([binary, str(ORTHANC_CONFIGURATION)], environment, work / "orthanc.log") as process:
        wait_for(f"http://127.0.0.1:{port}/system", process, work / "orthanc.log", any_answer=True)
        address = f"dicomweb://pathserve:{password}@127.0.0.1:{port}/dicom-web"
        console.print(f"PACS     Orthanc on 127.0.0.1:{port}; storing {len(files)} instances …")
        open_archive(address).store(files)
        yield address


@contextmanager
def running_gateway(work: Path, archive: str) -> Iterator[Gateway]:
    """`pathserve serve` with its worker and the embedded Triton, on a free port."""
    gateway = Gateway(f"http://127.0.0.1:{free_port()}", secrets.token_urlsafe(24))
    environment = {
        **os.environ,
        "PATHSERVE_STATE": str(work / "state"),
        "PATHSERVE_ARCHIVE": archive,
        "PATHSERVE_API_KEY": gateway.key,
        "PATHSERVE_METRICS_PORT": "0",
    }
    command = [str(Path(sys.prefix) / "bin" / "pathserve"), "serve", "--port", gateway.url.rsplit(":", 1)[1]]
    with child(command, environment, work / "gateway.log") as process:
        console.print(f"Gateway  {gateway.url}; waiting for Triton and the models …")
        wait_for(f"{gateway.url}/readyz", process, work / "gateway.log")
        yield gateway


def place_order(gateway: Gateway, headers: list[pydicom.Dataset]) -> str:
    """Order `tissue-classification` of the slide, with the identifiers that its header carries; the analysis id."""
    first = headers[0]
    containers: dict[str, set[str]] = {}
    for header in headers:
        containers.setdefault(str(header.ContainerIdentifier), set()).add(str(header.SeriesInstanceUID))
    body = {
        "protocol": "tissue-classification",
        "priority": "ROUTINE",
        "accession": str(first.AccessionNumber),
        "patient": {"id": str(first.PatientID)},
        "specimens": [
            {"container": container, "slides": [{"study": first.StudyInstanceUID, "series": sorted(series)}]}
            for container, series in sorted(containers.items())
        ],
    }
    answer = http.post(
        f"{gateway.url}/v1/analyses",
        json=body,
        headers={**gateway.headers, "Idempotency-Key": secrets.token_hex(8)},
        timeout=30,
    )
    if answer.status_code != 202:
        raise DemoError(f"the order was refused: {answer.text}")
    console.print(f"Order    {answer.headers['Location']} accepted")
    return str(answer.json()["id"])


def follow(gateway: Gateway, analysis: str) -> None:
    """Show the analysis's progress events until it has ended."""
    bar = Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        console=console,
    )
    tasks: dict[str, Any] = {}
    with bar:
        for event, data in events(gateway, analysis):
            if event == "state" and data["state"] == "held-identity":
                differing = ", ".join(data["attributes"])
                raise DemoError(f"the analysis is held: the order and the slides do not agree in {differing}.")
            if event == "progress":
                if data["step"] not in tasks:
                    tasks[data["step"]] = bar.add_task(data["step"], unit=data["unit"])
                bar.update(tasks[data["step"]], completed=data["done"], total=data["total"])
    url = f"{gateway.url}/v1/analyses/{analysis}"
    ended = http.get(url, headers=gateway.headers, timeout=30).json()
    if ended["state"] != "completed":
        raise DemoError(f"the analysis ended {ended['state']}: {json.dumps(ended.get('failure'))}")


def events(gateway: Gateway, analysis: str) -> Iterator[tuple[str, Any]]:
    """The server-sent events of an analysis, as (event, data), until the server ends the stream."""
    url = f"{gateway.url}/v1/analyses/{analysis}/events"
    with http.stream("GET", url, headers=gateway.headers, timeout=httpx.Timeout(30, read=600)) as stream:
        stream.raise_for_status()
        event = ""
        for line in stream.iter_lines():
            if line.startswith("event:"):
                event = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                yield event, json.loads(line.removeprefix("data:"))


def show(gateway: Gateway, analysis: str, archive: str, study: str) -> None:
    """Fetch the report in all its encodings, print it, and say where the files are."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    listed = http.get(f"{gateway.url}/v1/analyses/{analysis}/artifacts", headers=gateway.headers, timeout=60)
    listed.raise_for_status()
    for item in listed.json()["items"]:
        answer = http.get(gateway.url + item["href"], headers=gateway.headers, timeout=60)
        answer.raise_for_status()
        (OUT / item["name"]).write_bytes(answer.content)
    report = json.loads((OUT / "report.json").read_text())
    console.rule("Report")
    console.print(report["statement"])
    for finding in report["findings"]:
        console.print(f"[yellow]• {finding['text']}[/yellow]")
    for tissue in report["tissue"]:
        table = Table(title=f"Series {tissue['series']}" + (" (exploratory)" if tissue["exploratory"] else ""))
        for heading in ("class", "tiles", "area mm²", "share", "mean probability"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for row in tissue["classes"]:
            mean = row["mean_probability"]
            table.add_row(
                row["code"]["display"],
                str(row["tiles"]),
                f"{row['area_mm2']:.3f}",
                f"{100 * row['share']:.1f} %",
                "–" if mean is None else f"{mean:.2f}",
            )
        table.add_row(
            "uncertain", str(tissue["uncertain_tiles"]), f"{tissue['uncertain_area_mm2']:.3f}",
            f"{100 * tissue['uncertain_share']:.1f} %", f"< {tissue['min_probability']:.2f}",
        )  # fmt: skip
        console.print(table)
    objects = sorted(path.name.split(".")[-2].upper() for path in OUT.glob("*.dcm"))  # report.sr.dcm
    kind = "the PACS" if archive.startswith("dicomweb") else "the archive folder"
    console.print(f"{len(objects)} objects ({', '.join(objects)}) lie in {kind}, in study {study}.", soft_wrap=True)
    for path in sorted(OUT.iterdir()):
        console.print(path, soft_wrap=True)


@contextmanager
def child(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process, ended by its own pid at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, *, any_answer: bool = False) -> None:
    """Wait until `url` answers 200 (or at all). Raises DemoError with the end of the log."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            answer = http.get(url, timeout=5)
        except httpx.TransportError:
            pass
        else:
            if any_answer or answer.status_code == 200:
                return
        time.sleep(0.2)
    raise DemoError(f"{Path(process.args[0]).name} did not get ready:\n{log.read_text(errors='replace')[-2000:]}")  # type: ignore[index,arg-type]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
