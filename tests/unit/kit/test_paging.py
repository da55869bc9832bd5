"""Page tokens that come back, and those that no list gave out."""

import pytest

from services.kit.errors import InvalidArgument, InvalidCursor
from services.kit.paging import PageQuery, to_number


def test_a_token_is_a_direction_and_a_position() -> None:
    assert PageQuery.parse(limit=5, token="before:bob:1") == PageQuery(5, "bob:1", backwards=True)
    assert PageQuery.parse(limit=5, token="after:" + "𝄞" * 255).position == "𝄞" * 255


@pytest.mark.parametrize("token", ["after:", ":x", "beside:x", "after", "after:\0", "after:a\0b", "after:" + "x" * 300])
def test_what_no_list_gives_out_is_no_token(token: str) -> None:
    with pytest.raises(InvalidCursor):
        PageQuery.parse(limit=5, token=token)


@pytest.mark.parametrize("limit", [-1, 0, 201, 2**31 - 1])
def test_a_limit_out_of_range_is_refused_by_its_name(limit: int) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        PageQuery.parse(limit=limit, token="")
    assert refusal.value.metadata == {"field": "page.limit"}


def test_a_number_in_a_position_is_read() -> None:
    assert to_number("0012", digits=4) == 12


@pytest.mark.parametrize("position", ["", "²", "٣", "-1", "+1", " 1", "1_0", "1.0", "12345"])
def test_what_is_no_number_of_so_many_digits_is_no_position(position: str) -> None:
    with pytest.raises(InvalidCursor):
        to_number(position, digits=4)
