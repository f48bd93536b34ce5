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

from gateway.command_line import parser
from gateway.domain.analysis import Progress, Step
from gateway.domain.order import Order, RegionUm
from gateway.operations.errors import InvalidInput, PathserveError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status (0 done, 1 an error, 2 wrong usage, 130 interrupted). Never a stack trace."""
    arguments = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path or a name that the terminal's encoding lacks
    try:
        status = COMMANDS[arguments.command](arguments)
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
    from gateway.analyses.worker.process import worker

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


def _site(arguments: argparse.Namespace) -> int:
    from gateway.analyses import sites_command

    match arguments.action:
        case "fit":
            return _fit_site(arguments)
        case "list":
            return sites_command.list_sites(as_json=arguments.json)
        case "show":
            return sites_command.show(arguments.site, arguments.version)
        case "sign":
            return sites_command.sign(arguments.site, arguments.version, arguments.by)
        case _:
            return sites_command.retire(arguments.site, arguments.version, arguments.by)


def _fit_site(arguments: argparse.Namespace) -> int:
    from gateway.archive import Access, Archive, FolderArchive, open_archive
    from gateway.operations.settings import settings

    if arguments.archive is not None and not arguments.study:
        raise InvalidInput("--archive needs to know which slides: give --study UID, once for each study.")
    if arguments.slides is not None and arguments.study:
        raise InvalidInput("--study belongs to --archive; --slides takes every slide in its folder.")
    _end_by_interruption()
    archive: Archive
    if arguments.slides is not None:
        archive = folder = FolderArchive(arguments.slides)
        entries = folder.entries()
    else:
        archive = open_archive(arguments.archive, Access.from_settings(settings()))
        entries = tuple(entry for study in dict.fromkeys(arguments.study) for entry in archive.find_series(study))

    from gateway.analyses.sites_fit import fit_site

    with _bar() as show:
        return fit_site(arguments.site, archive, entries, arguments.stain, show, cervical=arguments.cervical)


def _study(arguments: argparse.Namespace) -> int:
    from gateway.analyses import study_command

    name, tenant = arguments.name, arguments.tenant
    match arguments.action:
        case "new":
            return study_command.new(
                name,
                protocol=arguments.protocol,
                title=arguments.title,
                by=arguments.by,
                changes=tuple(_change(text) for text in arguments.set),
                composed=arguments.composed,
                tenant=tenant,
            )
        case "enrol":
            return study_command.enrol(
                name,
                arguments.accessions,
                waiting=arguments.waiting,
                centre=arguments.centre,
                results=arguments.results,
                tenant=tenant,
            )
        case "exclude":
            return study_command.exclude(
                name, arguments.accession, reason=arguments.reason, results=arguments.results, tenant=tenant
            )
        case "join":
            return study_command.join(name, arguments.reference, supersede=arguments.supersede, tenant=tenant)
        case "report":
            return study_command.report(name, out=arguments.out, results=arguments.results, tenant=tenant)
        case _:
            return study_command.show(name, tenant=tenant)


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


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "analyze": _analyze,
    "serve": _serve,
    "worker": _worker,
    "doctor": _doctor,
    "models": _models,
    "site": _site,
    "study": _study,
    "deliveries": _deliveries,
    "feedback": _feedback,
    "keys": _keys,
    "clients": _clients,
    "audit": _audit,
    "purge": _purge,
    "schema": _schema,
    "phantom": _phantom,
    "import": _import,
}
