"""`pathserve …`: the command line. It composes the rooms; a typed error becomes one sentence and an exit status."""

import argparse
import asyncio
import io
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from gateway import __version__
from gateway.domain.analysis import Progress, Step
from gateway.domain.order import Order, RegionUm
from gateway.domain.principal import Scope
from gateway.operations.errors import InvalidInput, PathserveError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status (0 done, 1 an error, 2 wrong usage, 130 interrupted). Never a stack trace."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path or a name that the terminal's encoding lacks
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except PathserveError as error:
        print(f"pathserve: {error.detail}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough, e.g. `pathserve schema report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("pathserve: interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        kept = _log_internal_error()
        where = " Its log in the state folder says where." if kept else ""
        print(
            f"pathserve: an internal error ({type(error).__name__}) stopped the command; please report it.{where}",
            file=sys.stderr,
        )
        return 1


def _log_internal_error() -> bool:
    """Keep the exception being handled in the state folder's log; False where even that fails."""
    with suppress(Exception):
        from gateway.operations.logging import configure_logging
        from gateway.operations.settings import settings

        configure_logging("pathserve", settings().log_level, settings().state / "logs", terminal=False)
        logging.getLogger("gateway.cli").exception("command ended by an unexpected error")
        return True
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pathserve", description="Clinical inference server for digital pathology.")
    parser.add_argument("--version", action="version", version=f"pathserve {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    analyze = commands.add_parser("analyze", help="analyse one slide or study into a folder, without a server")
    analyze.add_argument("--protocol", required=True, help="what to do, e.g. tissue-classification")
    source = analyze.add_mutually_exclusive_group(required=True)
    source.add_argument("--slide", type=Path, metavar="DIR", help="folder of one slide's DICOM files")
    source.add_argument("--archive", metavar="URL", help="folder:DIR or dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH")
    analyze.add_argument("--study", metavar="UID", help="study instance UID (with --archive)")
    analyze.add_argument("--series", metavar="UID", help="series instance UID (with --archive)")
    analyze.add_argument("--accession", metavar="NUMBER", help="all slides of this accession (with --archive)")
    analyze.add_argument("--container", metavar="ID", help="the slides of this container (with --archive)")
    analyze.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report's files")
    analyze.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a prompt of the protocol")
    analyze.add_argument("--region", metavar="X,Y,W,H", help="only this box, in µm from the slide's top left")
    analyze.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    analyze.set_defaults(run=_analyze)

    serve = commands.add_parser("serve", help="answer the REST API and bring workers")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default: loopback only)")
    serve.add_argument("--port", type=_port, default=8080)
    serve.add_argument(
        "--workers", type=int, default=1, choices=range(9), metavar="N", help="worker processes to bring (0 to 8)"
    )
    serve.set_defaults(run=_serve)

    worker = commands.add_parser("worker", help="work on accepted orders")
    worker.add_argument("--metrics-port", type=_port, default=None, help="loopback port of this worker's /metrics")
    worker.set_defaults(run=_worker)

    doctor = commands.add_parser("doctor", help="say what is installed, reachable and ready")
    doctor.set_defaults(run=_doctor)

    models = commands.add_parser("models", help="say which versions of the models serve, and decide it")
    models.set_defaults(run=_models)
    _add_models(models.add_subparsers(required=True, metavar="ACTION", dest="action"))

    deliveries = commands.add_parser("deliveries", help="say what left, what waits and what is dead; try it again")
    deliveries.set_defaults(run=_deliveries)
    _add_deliveries(deliveries.add_subparsers(required=True, metavar="ACTION", dest="action"))

    feedback = commands.add_parser("feedback", help="what readers said of reports, as training signal")
    feedback.set_defaults(run=_feedback)
    exporting = feedback.add_subparsers(required=True, metavar="ACTION", dest="action")
    exporting.add_parser("export", help="all of it as JSON lines, without patients and free text")

    keys = commands.add_parser("keys", help="API keys besides the server's own")
    keys.set_defaults(run=_keys)
    _add_keys(keys.add_subparsers(required=True, metavar="ACTION", dest="action"))

    clients = commands.add_parser("clients", help="systems that log in by a signed assertion or a certificate")
    clients.set_defaults(run=_clients)
    _add_clients(clients.add_subparsers(required=True, metavar="ACTION", dest="action"))

    audit = commands.add_parser("audit", help="check the audit trail, or give it out")
    audit.set_defaults(run=_audit)
    _add_audit(audit.add_subparsers(required=True, metavar="ACTION", dest="action"))

    purge = commands.add_parser("purge", help="remove analyses, their files and cached slides for good")
    purge.set_defaults(run=_purge)
    _add_purge(purge)

    schema = commands.add_parser("schema", help="print a JSON Schema")
    schema.add_argument("what", choices=("report",))
    schema.set_defaults(run=_schema)

    phantom = commands.add_parser("phantom", help="write an invented slide with known truth, for tests")
    phantom.add_argument("--kind", choices=("he", "cytology"), required=True)
    phantom.add_argument("--out", type=Path, required=True, metavar="DIR")
    phantom.add_argument("--width", type=int, default=4096, metavar="PX")
    phantom.add_argument("--height", type=int, default=4096, metavar="PX")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=_phantom)

    imported = commands.add_parser("import", help="convert a vendor's slide file (SVS, NDPI, MRXS, …) to DICOM")
    imported.set_defaults(run=_import)
    _add_import(imported)
    return parser


def _add_deliveries(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    listing = actions.add_parser("list", help="every delivery, oldest first")
    listing.add_argument("--dead", action="store_true", help="dead letters only")
    listing.add_argument("--analysis", metavar="ID", help="of this analysis only")
    listing.add_argument("--json", action="store_true", help="as JSON")
    replay = actions.add_parser("replay", help="try deliveries again at once; nothing arrives twice")
    which = replay.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", nargs="*", default=[], metavar="ID")
    which.add_argument("--all-dead", action="store_true", help="every dead letter")


def _add_keys(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    create = actions.add_parser("create", help="make a key and print it once")
    create.add_argument("--name", required=True, help="who will use it")
    _add_rights(create)
    create.add_argument("--expires-days", type=int, metavar="DAYS", help="default: never")
    listing = actions.add_parser("list", help="every key, without its text")
    listing.add_argument("--json", action="store_true", help="as JSON")
    actions.add_parser("revoke", help="close a key for good").add_argument("id", metavar="ID")


def _add_clients(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    add = actions.add_parser("add", help="register a system")
    add.add_argument("id", metavar="ID", help="its client id")
    shown = add.add_mutually_exclusive_group(required=True)
    shown.add_argument("--jwks", type=Path, metavar="FILE", help="its public keys, as a JSON Web Key Set")
    shown.add_argument("--jwks-url", metavar="URL", help="where it publishes them")
    shown.add_argument("--certificate", type=Path, metavar="PEM", help="the certificate that it will show")
    add.add_argument("--name", help="for people to read (default: ID)")
    _add_rights(add)
    listing = actions.add_parser("list", help="every client")
    listing.add_argument("--json", action="store_true", help="as JSON")
    actions.add_parser("revoke", help="close a client, and every token that it has").add_argument("id", metavar="ID")


def _add_rights(action: argparse.ArgumentParser) -> None:
    scopes = [scope.value for scope in Scope if scope is not Scope.ANALYSES_SIGN]
    action.add_argument("--scope", action="append", required=True, choices=scopes, help="may be given several times")
    action.add_argument("--tenant", help="default: PATHSERVE_TENANT, or `default`")


def _add_audit(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = actions.add_parser("verify", help="say whether the trail is what was written (status 0) or not (1)")
    check.add_argument("--expect", metavar="SEQ:HASH", help="a record noted elsewhere, as `verify` prints the last one")
    export = actions.add_parser("export", help="print the records, one a line")
    export.add_argument("--format", choices=("jsonl", "fhir", "dicom"), default="jsonl")
    export.add_argument("--from", dest="since", metavar="TIME", help="from this time on (ISO 8601; UTC unless told)")
    export.add_argument("--to", dest="until", metavar="TIME", help="before this time")
    export.add_argument("--tenant", help="of this tenant only")


def _add_purge(purge: argparse.ArgumentParser) -> None:
    which = purge.add_mutually_exclusive_group(required=True)
    which.add_argument("--older-than", type=_days, metavar="DAYS", help="what has not changed for so many days")
    which.add_argument("--patient", metavar="ID", help="all of this patient; - = the first line of standard input")
    which.add_argument("--tenant", metavar="TENANT", help="all of this tenant")
    which.add_argument("--analysis", metavar="ID", help="this one analysis")
    purge.add_argument("--issuer", help="who gave the patient's id (with --patient)")
    purge.add_argument("--cancel", action="store_true", help="cancel what has not ended, give up what waits to be sent")
    purge.add_argument("--dry-run", action="store_true", help="say what is chosen, and do nothing")
    purge.add_argument("--yes", action="store_true", help="do not ask")


def _add_import(imported: argparse.ArgumentParser) -> None:
    imported.add_argument("source", type=Path, metavar="SRC", help="the slide's file")
    imported.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the DICOM files")
    imported.add_argument("--metadata", type=Path, metavar="FILE", help="JSON file of what is known of the slide")
    imported.add_argument("--study", metavar="UID", help="study to put the slide in (default: a new one)")
    imported.add_argument("--accession", metavar="NUMBER")
    imported.add_argument("--patient-id", metavar="ID")
    imported.add_argument("--patient-name", metavar="NAME", help="FAMILY^GIVEN")
    imported.add_argument("--container", metavar="ID", help="identifier of the glass slide")
    imported.add_argument("--stain", choices=("HE", "PAP"))
    imported.add_argument("--organ", metavar="CODE,SCHEME,NAME", help="e.g. 71854001,SCT,Colon")
    imported.add_argument("--mpp", type=_mpp, metavar="UM", help="µm per pixel, in place of what the file says")
    imported.add_argument("--with-label", action="store_true", help="label and overview too; they often show names")


def _add_models(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    listing = actions.add_parser("list", help="every version of every model")
    listing.add_argument("--json", action="store_true", help="as JSON, like GET /v1/models?versions=all")
    show = actions.add_parser("show", help="one version: card, gates, digests, decisions")
    show.add_argument("model", metavar="MODEL")
    show.add_argument("version", metavar="VERSION", nargs="?", help="default: the one that serves")
    promote = actions.add_parser("promote", help="let a version serve, once it has proven itself in the worker")
    promote.add_argument("model", metavar="MODEL")
    promote.add_argument("version", metavar="VERSION")
    promote.add_argument("--retired", action="store_true", help="also one that was retired")
    retire = actions.add_parser("retire", help="take a version that does not serve out of the choice")
    retire.add_argument("model", metavar="MODEL")
    retire.add_argument("version", metavar="VERSION")
    rollback = actions.add_parser("rollback", help="let the version serve again that served before")
    rollback.add_argument("model", metavar="MODEL")


# The commands import what they need themselves: `pathserve --help` and a wrong option must not wait for numpy.


def _analyze(arguments: argparse.Namespace) -> int:
    from gateway.reports.outputs import own_outputs_replaced

    with own_outputs_replaced(arguments.out):
        files = _analyze_into(arguments, arguments.out)
    for path in files:
        print(path)
    return 0


def _analyze_into(arguments: argparse.Namespace, out: Path) -> tuple[Path, ...]:
    from gateway.analyses.protocols import protocol_named
    from gateway.operations.logging import configure_logging
    from gateway.operations.settings import settings
    from gateway.operations.state import prepare_state

    protocol_named(arguments.protocol)
    keys = (arguments.study, arguments.series, arguments.accession, arguments.container)
    if arguments.archive is not None and not any(keys):
        raise InvalidInput(
            "--archive needs to know what to analyse: give --study UID, --series UID, --accession NUMBER or "
            "--container ID."
        )
    if arguments.slide is not None and any(keys):
        raise InvalidInput(
            "--study, --series, --accession and --container belong to --archive; --slide takes the slide in its folder."
        )
    region = _region(arguments.region) if arguments.region is not None else None
    changes = tuple(_change(text) for text in arguments.set)
    prepare_state(settings())
    # What libraries have to say may quote a header: it goes to the log's allow-list, never to the terminal.
    configure_logging("analyze", settings().log_level, settings().state / "logs", terminal=False)
    _end_by_interruption()

    from gateway.analyses.local import analyze, case_of
    from gateway.archive import Access, Archive, FolderArchive, SlideQuery, open_archive

    archive: Archive
    if arguments.slide is not None:
        archive = folder = FolderArchive(arguments.slide)
        entries = folder.entries()
    else:
        archive = open_archive(arguments.archive, Access.from_settings(settings()))
        if arguments.study is not None and not (arguments.accession or arguments.container):
            entries = archive.find_series(arguments.study, (arguments.series,) if arguments.series else ())
        else:
            study, series, accession, container = keys
            query = SlideQuery(study=study, series=series, accession=accession, container=container)
            entries = archive.search(query)
    order = Order(
        protocol=arguments.protocol,
        # What they were found by is what their headers have to say.
        accession=arguments.accession,
        specimens=tuple(replace(specimen, container=arguments.container) for specimen in case_of(entries)),
        prompts=tuple(arguments.prompt),
        region=region,
        settings=changes,
    )
    with _bar() as show:
        return asyncio.run(analyze(order, archive, out, settings(), show))


def _end_by_interruption() -> None:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that what we started ends and nothing is left half done."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as `nohup` sets it
            signal.signal(ending, signal.default_int_handler)


def _serve(arguments: argparse.Namespace) -> int:
    from gateway.http.serve import Door, serve
    from gateway.operations.settings import settings

    doors: list[Door] = []
    if settings().grpc_port is not None:
        from gateway.grpc.metrics import REGISTRY
        from gateway.grpc.server import open_grpc

        doors.append(Door(open_grpc, REGISTRY))
    return serve(host=arguments.host, port=arguments.port, workers=arguments.workers, doors=doors)


def _worker(arguments: argparse.Namespace) -> int:
    from gateway.analyses.worker import worker

    return worker(metrics_port=arguments.metrics_port)


def _doctor(arguments: argparse.Namespace) -> int:
    from gateway.analyses.doctor import doctor

    return doctor()


def _models(arguments: argparse.Namespace) -> int:
    from gateway.analyses import models_command

    match arguments.action:
        case "list":
            return models_command.list_models(as_json=arguments.json)
        case "show":
            return models_command.show(arguments.model, arguments.version)
        case "promote":
            return models_command.promote(arguments.model, arguments.version, retired=arguments.retired)
        case "retire":
            return models_command.retire(arguments.model, arguments.version)
        case _:
            return models_command.rollback(arguments.model)


def _deliveries(arguments: argparse.Namespace) -> int:
    from gateway.analyses import deliveries_command

    if arguments.action == "list":
        return deliveries_command.list_deliveries(
            dead=arguments.dead, analysis=arguments.analysis, as_json=arguments.json
        )
    return deliveries_command.replay(arguments.ids, all_dead=arguments.all_dead)


def _feedback(arguments: argparse.Namespace) -> int:
    from gateway.analyses.feedback_command import export

    return export()


def _keys(arguments: argparse.Namespace) -> int:
    from gateway.operations.auth import commands

    match arguments.action:
        case "create":
            return commands.create_key(arguments.name, arguments.scope, arguments.tenant, arguments.expires_days)
        case "list":
            return commands.list_keys(as_json=arguments.json)
        case _:
            return commands.revoke_key(arguments.id)


def _clients(arguments: argparse.Namespace) -> int:
    from gateway.operations.auth import commands

    match arguments.action:
        case "add":
            return commands.add_client(
                arguments.id,
                arguments.name,
                arguments.scope,
                arguments.tenant,
                jwks=arguments.jwks,
                jwks_url=arguments.jwks_url,
                certificate=arguments.certificate,
            )
        case "list":
            return commands.list_clients(as_json=arguments.json)
        case _:
            return commands.revoke_client(arguments.id)


def _audit(arguments: argparse.Namespace) -> int:
    from gateway.operations.audit import command

    if arguments.action == "verify":
        return command.verify_trail(arguments.expect)
    return command.export_trail(arguments.format, arguments.since, arguments.until, arguments.tenant)


def _purge(arguments: argparse.Namespace) -> int:
    from gateway.analyses.purge import Which
    from gateway.analyses.purge_command import purge

    patient = arguments.patient
    if patient == "-":  # not for everybody to read in the list of processes
        patient = sys.stdin.readline()
    if patient is not None and not (patient := patient.strip()):
        raise InvalidInput("--patient needs an id.")
    if arguments.issuer is not None and patient is None:
        raise InvalidInput("--issuer belongs to --patient.")
    which = Which(
        older_than_days=arguments.older_than,
        patient=patient,
        issuer=arguments.issuer,
        tenant=arguments.tenant,
        analysis=arguments.analysis,
    )
    return purge(which, dry_run=arguments.dry_run, yes=arguments.yes, cancel=arguments.cancel)


def _schema(arguments: argparse.Namespace) -> int:
    from gateway.reports import report_schema

    print(json.dumps(report_schema(), indent=2))
    return 0


def _phantom(arguments: argparse.Namespace) -> int:
    from gateway.slides.phantom import write_phantom

    try:
        write_phantom(
            arguments.out,
            kind=arguments.kind,
            width_px=arguments.width,
            height_px=arguments.height,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise InvalidInput(f"No phantom can be made of this: {error}.") from None
    except OSError as error:
        raise InvalidInput(f"The folder given by --out cannot be written ({error.strerror}). Name another.") from None
    print(arguments.out)
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from gateway.operations.settings import settings
    from gateway.slides.import_facts import slide_facts
    from gateway.slides.importing import import_slide

    names = ("study", "accession", "patient_id", "patient_name", "container", "stain", "organ")
    facts = slide_facts(arguments.metadata, **{name: getattr(arguments, name) for name in names})
    _end_by_interruption()
    files = import_slide(
        arguments.source,
        arguments.out,
        facts,
        environment=settings().import_venv,
        mpp=arguments.mpp,
        label=arguments.with_label,
    )
    for path in files:
        print(path)
    return 0


def _mpp(text: str) -> float:
    try:
        mpp = float(text)
    except ValueError:
        mpp = math.nan
    if not 0.02 <= mpp <= 20:
        raise argparse.ArgumentTypeError("micrometres per pixel are a number from 0.02 to 20, e.g. 0.25")
    return mpp


def _days(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 36500):
        raise argparse.ArgumentTypeError("days are a whole number from 0 to 36500")
    return int(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def _region(text: str) -> RegionUm:
    try:
        x_um, y_um, width_um, height_um = (float(part) for part in text.split(","))
    except ValueError:
        x_um = y_um = width_um = height_um = math.nan
    if not (0 <= x_um < math.inf and 0 <= y_um < math.inf and 0 < width_um < math.inf and 0 < height_um < math.inf):
        raise InvalidInput(
            "--region takes four numbers X,Y,W,H in micrometres from the slide's top left, e.g. 1000,2000,500,500."
        )
    return RegionUm(x_um, y_um, width_um, height_um)


def _change(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InvalidInput(f"--set takes KEY=VALUE, e.g. tissue.min_share=0.5; {text!r} is not of that form.")
    return name, value


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr, one line a step, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    tasks: dict[Step, TaskID] = {}
    console = Console(stderr=True)
    with Bar(
        TextColumn("{task.description:<7}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,  # a log wants the sentence of an error, not a bar
    ) as bar:

        def show(progress: Progress) -> None:
            if progress.step not in tasks:
                tasks[progress.step] = bar.add_task(progress.step.value, total=None, unit=progress.unit)
            bar.update(tasks[progress.step], completed=progress.done, total=progress.total)

        yield show
