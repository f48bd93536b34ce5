"""What an order may ask for: refused before it is accepted, with a sentence that says what to change."""

import pytest

from gateway.analyses.protocols import PROTOCOLS, check_order, options_of, protocol_named
from gateway.domain.order import Order, SlideReference, Specimen
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


def test_prompts_where_there_are_none() -> None:
    with pytest.raises(InvalidOrder, match="no prompts"):
        check_order(Order(NAME, (ONE,), prompts=("nuclei",)))


@pytest.mark.parametrize("value", ["2", "-1", "nan", "inf", "much", ""])
def test_setting_out_of_range(value: str) -> None:
    with pytest.raises(InvalidSetting):
        check_order(Order(NAME, (ONE,), settings=(("tissue.min_share", value),)))


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
