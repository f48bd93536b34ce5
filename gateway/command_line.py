"""The words of the command line: every command, its options, and what values they take."""

import argparse
import math
from pathlib import Path

from gateway import __version__
from gateway.domain.principal import MACHINE_SCOPES, Scope


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` names what is to be run, `action` what of it."""
    root = argparse.ArgumentParser(prog="pathserve", description="Clinical inference server for digital pathology.")
    root.add_argument("--version", action="version", version=f"pathserve {__version__}")
    commands = root.add_subparsers(required=True, metavar="COMMAND", dest="command")

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
    analyze.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to outline (segmentation), or whose part in the answer to explain (slide-classification), e.g. "
        "'nuclei-level epithelial in colon pathology'; may be repeated",
    )
    analyze.add_argument("--region", metavar="X,Y,W,H", help="only this box, in µm from the slide's top left")
    analyze.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")

    serve = commands.add_parser("serve", help="answer the REST API and bring workers")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default: loopback only)")
    serve.add_argument("--port", type=_port, default=8080)
    serve.add_argument(
        "--workers", type=int, default=1, choices=range(9), metavar="N", help="worker processes to bring (0 to 8)"
    )

    worker = commands.add_parser("worker", help="work on accepted orders")
    worker.add_argument("--metrics-port", type=_port, default=None, help="loopback port of this worker's /metrics")

    commands.add_parser("doctor", help="say what is installed, reachable and ready")

    models = commands.add_parser("models", help="say which versions of the models serve, and decide it")
    _add_models(models.add_subparsers(required=True, metavar="ACTION", dest="action"))

    site = commands.add_parser("site", help="fit a cytology model to a centre's scanner and stain, and decide on it")
    _add_site(site.add_subparsers(required=True, metavar="ACTION", dest="action"))

    study = commands.add_parser("study", help="register cases before their results, and hold them against a reference")
    _add_study(study.add_subparsers(required=True, metavar="ACTION", dest="action"))

    deliveries = commands.add_parser("deliveries", help="say what left, what waits and what is dead; try it again")
    _add_deliveries(deliveries.add_subparsers(required=True, metavar="ACTION", dest="action"))

    feedback = commands.add_parser("feedback", help="what readers said of reports, as training signal")
    exporting = feedback.add_subparsers(required=True, metavar="ACTION", dest="action")
    exporting.add_parser("export", help="all of it as JSON lines, without patients and free text")

    keys = commands.add_parser("keys", help="API keys besides the server's own")
    _add_keys(keys.add_subparsers(required=True, metavar="ACTION", dest="action"))

    clients = commands.add_parser("clients", help="systems that log in by a signed assertion or a certificate")
    _add_clients(clients.add_subparsers(required=True, metavar="ACTION", dest="action"))

    audit = commands.add_parser("audit", help="check the audit trail, or give it out")
    _add_audit(audit.add_subparsers(required=True, metavar="ACTION", dest="action"))

    purge = commands.add_parser("purge", help="remove analyses, their files and cached slides for good")
    _add_purge(purge)

    schema = commands.add_parser("schema", help="print a JSON Schema")
    schema.add_argument("what", choices=("report",))

    phantom = commands.add_parser("phantom", help="write an invented slide with known truth, for tests")
    phantom.add_argument("--kind", choices=("he", "cytology"), required=True)
    phantom.add_argument("--out", type=Path, required=True, metavar="DIR")
    phantom.add_argument("--width", type=int, default=4096, metavar="PX")
    phantom.add_argument("--height", type=int, default=4096, metavar="PX")
    phantom.add_argument("--seed", type=int, default=0)

    imported = commands.add_parser("import", help="convert a vendor's slide file (SVS, NDPI, MRXS, …) to DICOM")
    _add_import(imported)
    return root


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
    scopes = [scope.value for scope in Scope if scope in MACHINE_SCOPES]
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


def _add_site(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    fit = actions.add_parser("fit", help="fit the next version of a site to 32 unlabelled slides or more")
    fit.add_argument("--site", required=True, metavar="NAME", help="e.g. north-s360-pap")
    source = fit.add_mutually_exclusive_group(required=True)
    source.add_argument("--slides", type=Path, metavar="DIR", help="folder with the DICOM files of all slides")
    source.add_argument("--archive", metavar="URL", help="folder:DIR or dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH")
    fit.add_argument(
        "--study", action="append", default=[], metavar="UID", help="all slides of this study (with --archive); repeat"
    )
    fit.add_argument("--stain", choices=("PAP",), help="of all slides, where their headers do not state it")
    fit.add_argument(
        "--cervical", action="store_true", help="slides whose headers do not state the specimen are of the cervix"
    )
    listing = actions.add_parser("list", help="every version of every site")
    listing.add_argument("--json", action="store_true", help="as JSON")
    show = actions.add_parser("show", help="one version: what was measured, what it rests on, who decided what")
    show.add_argument("site", metavar="NAME")
    show.add_argument("version", metavar="VERSION", type=_version, nargs="?", help="default: the newest")
    for name, what in (("sign", "let a version be used"), ("retire", "use a version no more")):
        action = actions.add_parser(name, help=what)
        action.add_argument("site", metavar="NAME")
        action.add_argument("version", metavar="VERSION", type=_version)
        action.add_argument("--by", required=True, metavar="PERSON", help="the person who answers for it")


def _add_study(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    new = actions.add_parser("new", help="freeze software, models, operating point, settings and sites")
    enrol = actions.add_parser("enrol", help="register cases before their results are there")
    exclude = actions.add_parser("exclude", help="leave a case out, with the reason")
    join = actions.add_parser("join", help="join the reference standard, which closes enrolment")
    report = actions.add_parser("report", help="the figures against the reference standard")
    show = actions.add_parser("show", help="what was frozen, how far it is, and whether it is what was written")
    for action in (new, enrol, exclude, join, report, show):
        action.add_argument("name", metavar="NAME", help="of the study, e.g. north-2027")
        action.add_argument("--tenant", help="default: PATHSERVE_TENANT, or `default`")
    for action in (enrol, exclude, report):
        action.add_argument("--results", type=Path, metavar="DIR", help="the reports' folders, of a --composed study")
    new.add_argument("--protocol", required=True, help="cervical-screening")
    new.add_argument("--by", required=True, metavar="PERSON", help="the person who answers for it")
    new.add_argument("--title", default="", metavar="TEXT", help="what it is to show")
    new.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting that every order has")
    new.add_argument(
        "--composed", action="store_true", help="of composed slides, from folders that `pathserve analyze` writes"
    )
    enrol.add_argument("accessions", nargs="*", metavar="ACCESSION", help="in the order in which they came")
    enrol.add_argument("--waiting", action="store_true", help="all that are ordered and have no result yet")
    enrol.add_argument("--centre", required=True, metavar="NAME", help="where they come from")
    exclude.add_argument("accession", metavar="ACCESSION")
    exclude.add_argument("--reason", required=True, metavar="TEXT")
    join.add_argument("reference", type=Path, metavar="REFERENCE.csv", help="columns accession and category")
    join.add_argument("--supersede", metavar="REASON", help="take the place of the version before")
    report.add_argument("--out", type=Path, metavar="DIR", help="write it there, as JSON and Markdown")


def _version(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError("versions are counted from 1")
    return int(text)


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
