"""Declarations resolve to numbers, and say so when they cannot."""

import pytest

from edgecil.memory.fields import Dimensions, Field, columns, exemplar_fields, holds_images

DIMENSIONS = Dimensions(
    (10, 5, 1), features=64, height=32, width=48, exemplars=7, trees={"conv": {"a": (2, 3)}}
)


def test_symbols_at_the_end_and_as_of_an_increment():
    every = ("K", "C", "C_new", "T", "D", "H", "W", 3)
    assert DIMENSIONS.shapes(Field("x", every, "test")) == (7, 16, 1, 3, 64, 32, 48, 3)
    assert DIMENSIONS.shapes(Field("x", every, "test"), 2) == (7, 15, 5, 2, 64, 32, 48, 3)


def test_trees_resolve_by_name():
    assert DIMENSIONS.shapes(Field("x", "conv", "test")) == {"a": (2, 3)}
    with pytest.raises(ValueError, match=r"no tree 'bn' \(known: conv\)"):
        DIMENSIONS.shapes(Field("x", "bn", "test"))


def test_unknown_symbol_names_the_known_ones():
    with pytest.raises(ValueError, match=r"field x: unknown symbol 'Q' \(known: C, C_new, D"):
        DIMENSIONS.shapes(Field("x", ("K", "Q"), "test"))


def test_a_method_may_bring_its_own_symbol():
    dimensions = Dimensions((2,), 4, 8, 8, extra={"R": 11})
    assert dimensions.shapes(Field("ranges", ("R", 2), "test")) == (11, 2)


@pytest.mark.parametrize("name", ["", "a@1", "a:lengths"])
def test_names_that_would_be_ambiguous_in_the_file(name):
    with pytest.raises(ValueError, match="field name"):
        Field(name, (1,), "test")


def test_unknown_dtype():
    with pytest.raises(ValueError, match="unknown dtype 'float32'"):
        Field("x", (1,), "test", "float32")


def test_who_can_reach_old_images():
    assert holds_images(exemplar_fields("reference"))
    assert holds_images((Field("features", ("K", "D"), "test"),))
    assert not holds_images((Field("importance", "conv-weights", "test"), Field("m", ("C",), "t")))


def test_columns_are_raw_rows_per_exemplar():
    flag = Field("exemplars.held_out", ("K",), "not trained on", "BOOL")
    assert columns((*exemplar_fields("png"), flag)) == (flag,)
    with pytest.raises(ValueError, match="must be raw"):
        columns((Field("x", ("K",), "test", "U8", "png"),))
