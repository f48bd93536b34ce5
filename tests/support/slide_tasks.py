"""A slide's task of any protocol, as the steps of an analysis make it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway.analyses.protocols import Protocol, options_of
from gateway.analyses.slide_half import SlideTask
from gateway.domain.codes import Code
from gateway.domain.order import Order, RegionUm, SlideReference, Specimen
from gateway.slides import Slide
from tests.support.served import served_models


@contextmanager
def slide_task(
    protocol: Protocol,
    slide_folder: Path,
    models: Path,
    folder: Path,
    *,
    served: Sequence[str] | None = None,
    stain: str | None = None,
    kind: Code | None = None,
    site: Code | None = None,
    prompts: tuple[str, ...] = (),
    region: RegionUm | None = None,
    state_folder: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[SlideTask]:
    """The task of one slide, whose specimen has the header's container. `served`: the folders of the models (those of
    the protocol); `settings`: with `__` for the dot."""
    with Slide.open(sorted(slide_folder.glob("*.dcm"))) as slide:
        header = slide.header
        specimen = Specimen(
            container=header.container_id,
            stain=stain,
            type=kind,
            site=site,
            slides=(SlideReference(header.study_uid, (header.series_uid,)),),
        )
        given = tuple((key.replace("__", "."), value) for key, value in (settings or {}).items())
        order = Order(protocol=protocol.name, specimens=(specimen,), prompts=prompts, region=region, settings=given)
        yield SlideTask(
            slide=slide,
            models=served_models(models, protocol.models if served is None else served),
            order=order,
            specimen=specimen,
            options=options_of(protocol, order),
            folder=folder,
            state_folder=state_folder,
        )
