"""What the use-cases give, as messages."""

from datetime import datetime
from enum import Enum
from itertools import chain
from typing import Any

from gateway import __version__
from gateway.analyses.catalogue import ModelState, ProtocolCards, ServerStatus
from gateway.analyses.ledger.events import Event
from gateway.analyses.ledger.records import Record
from gateway.analyses.reads import ResultFile
from gateway.domain.codes import Code
from gateway.domain.delivery import Delivery
from gateway.domain.feedback import FeedbackRecord
from gateway.domain.order import Order, RegionUm
from gateway.domain.report import Finding
from gateway.domain.revision import Revision
from gateway.domain.segment import PromptMask, SegmentAnswer
from gateway.grpc.proto.pathserve.v1 import analysis_pb2, catalog_service_pb2, order_pb2, results_pb2, segment_pb2


def analysis(record: Record) -> analysis_pb2.Analysis:
    """The whole analysis, with its order and models."""
    view = summary(record)
    view.order.CopyFrom(_order(record.analysis.order))
    for name, version in record.models:
        view.models.add(name=name, version=version)
    return view


def summary(record: Record) -> analysis_pb2.Analysis:
    """The analysis as lists show it."""
    found, order = record.analysis, record.analysis.order
    view = analysis_pb2.Analysis(
        id=found.id,
        state=named(analysis_pb2.State, found.state),
        protocol=order.protocol,
        priority=named(order_pb2.Priority, order.priority),
        accession=order.accession,
        cancel_requested=record.cancel_requested and not found.state.final,
        held=[
            analysis_pb2.Difference(attribute=each.attribute, series=each.series, problem=each.problem.value)
            for each in record.held
        ],
        etag=record.version,
        run=record.run,
    )
    _times(view, created=found.created, updated=found.updated, deadline=record.deadline)
    if (progress := record.progress) is not None:
        view.progress.CopyFrom(
            analysis_pb2.Progress(
                step=progress.step.value, done=progress.done, total=progress.total, unit=progress.unit
            )
        )
    if found.failure is not None:
        view.failure.reason, view.failure.detail = found.failure.reason, found.failure.detail
    return view


def event(found: Event) -> analysis_pb2.Event:
    view = analysis_pb2.Event(seq=found.seq, kind=found.kind)
    _times(view, time=found.time)
    view.data.update(found.data)
    return view


def file_info(file: ResultFile) -> results_pb2.FileInfo:
    return results_pb2.FileInfo(name=file.name, media_type=file.media_type, bytes=file.bytes, etag=file.etag)


def revision(found: Revision) -> results_pb2.Revision:
    view = results_pb2.Revision(
        number=found.number,
        state=named(results_pb2.ReportState, found.state),
        documents=found.documents,
        by=found.by,
        by_name=found.by_name,
        reason=found.reason,
    )
    _times(view, made=found.made)
    return view


def feedback(record: FeedbackRecord) -> results_pb2.Feedback:
    said = record.feedback
    view = results_pb2.Feedback(
        verdict=named(results_pb2.Verdict, said.verdict),
        finding=_code(said.finding),
        series=said.series,
        comment=said.comment,
        revision=record.revision,
        by=record.by,
        number=record.number,
    )
    _times(view, time=record.time)
    return view


def delivery(found: Delivery) -> results_pb2.Delivery:
    view = results_pb2.Delivery(
        id=found.id,
        channel=found.channel.value,
        target=found.target,
        event=found.event,
        state=named(results_pb2.DeliveryState, found.state),
        revision=found.revision,
        tries=found.tries,
        done=found.done,
        reason=found.reason,
        detail=found.detail,
    )
    _times(view, created=found.created, next=found.next, settled=found.settled)
    return view


def protocol(found: ProtocolCards) -> catalog_service_pb2.Protocol:
    view = catalog_service_pb2.Protocol(
        name=found.protocol.name, title=found.protocol.title, models=found.protocol.models
    )
    for name, spec in found.protocol.settings.items():
        view.settings[name].CopyFrom(
            catalog_service_pb2.Setting(default=spec.default, least=spec.least, most=spec.most, meaning=spec.meaning)
        )
    for name, card in found.cards.items():
        if card is not None:
            view.cards[name].update(card)
    return view


def model(found: ModelState) -> catalog_service_pb2.Model:
    return catalog_service_pb2.Model(
        name=found.name,
        version=found.version,
        ready=found.ready,
        reason=found.reason,
        state=found.state,
        folder=found.folder,
        target=found.target,
        precision=found.precision,
    )


def status(found: ServerStatus) -> catalog_service_pb2.Status:
    view = catalog_service_pb2.Status(
        version=__version__,
        ready=found.readiness.ready,
        parts=found.readiness.parts,
        analyses=found.analyses,
        oldest_s=found.oldest_s,
        dead_letters=found.dead_letters,
    )
    _times(view, now=found.now, started=found.started)
    for worker in found.workers:
        shown = view.workers.add(id=worker.id, host=worker.host, parts=worker.parts)
        _times(shown, beat=worker.beat, started=worker.started)
    for (channel, state), count in found.deliveries.items():
        view.deliveries.add(channel=channel, state=state, count=count)
    return view


def segmented(answer: SegmentAnswer) -> segment_pb2.SegmentResponse:
    view = segment_pb2.SegmentResponse(
        study=answer.study,
        series=answer.series,
        region=_region(answer.region),
        findings=[_finding(each) for each in answer.findings],
        masks=[_mask(each) for each in answer.masks],
    )
    for name, version in answer.models:
        view.models.add(name=name, version=version)
    return view


def named(kind: Any, member: Enum) -> Any:
    """The value of a protocol buffers' enum that has our member's name."""
    return kind.Value(kind.Name(0).removesuffix("UNSPECIFIED") + member.name)


def _order(order: Order) -> order_pb2.Order:
    view = order_pb2.Order(
        protocol=order.protocol,
        priority=named(order_pb2.Priority, order.priority),
        accession=order.accession,
        prompts=order.prompts,
    )
    if order.patient.id is not None or order.patient.issuer is not None:
        view.patient.CopyFrom(order_pb2.Patient(id=order.patient.id, issuer=order.patient.issuer))
    for specimen in order.specimens:
        view.specimens.add(
            container=specimen.container,
            type=_code(specimen.type),
            site=_code(specimen.site),
            stain=specimen.stain,
            slides=[order_pb2.Slide(study=slide.study, series=slide.series) for slide in specimen.slides],
        )
    if order.region is not None:
        view.region.CopyFrom(_region(order.region))
    return view


def _region(region: RegionUm) -> order_pb2.Region:
    return order_pb2.Region(
        x_um=region.x_um,
        y_um=region.y_um,
        width_um=region.width_um,
        height_um=region.height_um,
        polygon_um=[order_pb2.Point(x_um=each.x_um, y_um=each.y_um) for each in region.polygon_um],
    )


def _mask(mask: PromptMask) -> segment_pb2.Mask:
    return segment_pb2.Mask(
        prompt=mask.prompt,
        triple=mask.triple,
        category=_code(mask.category),
        code=_code(mask.code),
        supported=mask.supported,
        present=mask.present,
        presence=mask.presence,
        mpp=mask.mpp,
        x_um=mask.x_um,
        y_um=mask.y_um,
        width_px=mask.width_px,
        height_px=mask.height_px,
        area_um2=mask.area_um2,
        area_fraction=mask.area_fraction,
        png=mask.png,
        polygons=[
            segment_pb2.Polygon(rings=[segment_pb2.Ring(xy_um=chain.from_iterable(ring)) for ring in polygon])
            for polygon in mask.polygons
        ],
        tolerance_um=mask.tolerance_um,
        findings=[_finding(each) for each in mask.findings],
    )


def _finding(finding: Finding) -> segment_pb2.Finding:
    return segment_pb2.Finding(kind=finding.kind.value, code=_code(finding.code), text=finding.text)


def _code(code: Code | None) -> order_pb2.Code | None:
    return None if code is None else order_pb2.Code(code=code.code, scheme=code.scheme, display=code.display)


def _times(view: Any, **times: datetime | None) -> None:
    for name, time in times.items():
        if time is not None:
            getattr(view, name).FromDatetime(time)
