"""What an order may ask for: refused before it is accepted, with a sentence that says what to change."""

import re
from pathlib import Path

import pytest

import gateway
from gateway.analyses.protocols import PROTOCOLS, check_order, options_of, protocol_named
from gateway.domain.order import Order, PointUm, RegionUm, SlideReference, Specimen
from gateway.domain.prompts import MOST_PROMPTS
from gateway.operations.errors import InvalidOrder, InvalidSetting, UnknownProtocol

NAME = "tissue-classification"
ONE = Specimen(slides=(SlideReference("1.2", ("1.2.3",)),))


def test_good_orders_pass() -> None:
    check_order(Order(NAME, (ONE,)))
    check_order(Order(NAME, (ONE, Specimen(slides=(SlideReference("1.2", ("1.2.4",)),)))))


def test_unknown_protocol_names_the_known() -> None:
    with pytest.raises(UnknownProtocol, match=NAME):
        check_order(Order("palmistry", (ONE,)))


@pytest.mark.parametrize("specimens", [(), (Specimen(slides=()),)])
def test_no_slide(specimens: tuple[Specimen, ...]) -> None:
    with pytest.raises(InvalidOrder, match="no slide"):
        check_order(Order(NAME, specimens))


def test_a_slide_named_twice() -> None:
    with pytest.raises(InvalidOrder, match="twice"):
        check_order(Order(NAME, (ONE, ONE)))


def test_more_prompts_than_are_answered() -> None:
    with pytest.raises(InvalidOrder, match="no prompts"):
        check_order(Order(NAME, (ONE,), prompts=("nuclei",)))
    check_order(Order("segmentation", (ONE,), prompts=("nuclei",) * MOST_PROMPTS))
    with pytest.raises(InvalidOrder, match="33 prompts; the protocol segmentation answers 32 at a time"):
        check_order(Order("segmentation", (ONE,), prompts=("nuclei",) * (MOST_PROMPTS + 1)))
    assert max(most for _, most in (each.prompts for each in PROTOCOLS.values())) == MOST_PROMPTS
    proto = Path(gateway.__file__).with_name("grpc") / "proto/pathserve/v1/order.proto"
    [comment] = [line for line in proto.read_text().splitlines() if "other protocols none" in line]
    for each in PROTOCOLS.values():
        least, most = each.prompts
        assert re.search(rf"`{each.name}`( takes)? {least} to {most}[ ,]", comment) or not most


@pytest.mark.parametrize(
    ("box", "corners"),
    [
        ((0, 0, 0, 9), ()),
        ((0, 0, 9, -1), ()),
        ((-9, 0, 9, 9), ()),
        ((0, 0, 9, 9), ((1, 1), (1, 1), (1, 1))),
        ((0, 0, 9, 9), ((0.1, 0.1), (0.3, 0.7), (0.2, 0.4))),
        ((0, 0, 9, 9), ((0, 9), (9, 9), (9, 18))),
    ],
)
def test_regions_that_enclose_nothing(box: tuple[float, ...], corners: tuple[tuple[float, float], ...]) -> None:
    prompts = ("nuclei",)
    region = RegionUm(*box, tuple(PointUm(*corner) for corner in corners))
    with pytest.raises(InvalidOrder, match="encloses nothing"):
        check_order(Order("segmentation", (ONE,), prompts=prompts, region=region))
    bow = tuple(PointUm(*corner) for corner in ((0, 0), (9, 9), (9, 0), (0, 9)))  # whose signed area is none
    check_order(Order("segmentation", (ONE,), prompts=prompts, region=RegionUm(0, 0, 9, 9, bow)))


@pytest.mark.parametrize("value", ["2", "-1", "nan", "inf", "much", ""])
def test_setting_out_of_range(value: str) -> None:
    with pytest.raises(InvalidSetting):
        check_order(Order(NAME, (ONE,), settings=(("tissue.min_share", value),)))


@pytest.mark.parametrize("setting", ["explain.tiles", "explain.repeats"])
def test_what_is_counted_is_a_whole_number(setting: str) -> None:
    """Else it would be cut to one, and the report would name another."""
    with pytest.raises(InvalidSetting, match="whole number"):
        check_order(Order("slide-classification", (ONE,), settings=((setting, "10.7"),)))
    check_order(Order("slide-classification", (ONE,), settings=((setting, "10.0"),)))


def test_a_setting_given_twice() -> None:
    twice = (("tissue.min_share", "0.9"), ("tissue.min_share", "0.1"))
    with pytest.raises(InvalidSetting, match="more than once"):
        check_order(Order(NAME, (ONE,), settings=twice))


def test_settings_are_taken() -> None:
    protocol = protocol_named(NAME)
    changed = options_of(protocol, Order(NAME, (ONE,), settings=(("tissue.min_share", "0.5"),)))
    assert changed["tissue.min_share"] == 0.5
    assert (
        options_of(protocol, Order(NAME, (ONE,)))["tissue.min_share"]
        == PROTOCOLS[NAME].settings["tissue.min_share"].default
    )
