"""Reading makes the search for reference cycles rare, and leaves it as it was."""

from __future__ import annotations

import gc

import pytest

from tools.logs.garbage import rarely_searched


def test_the_last_reader_restores_what_the_first_one_found() -> None:
    before = gc.get_threshold()
    with rarely_searched():
        assert gc.get_threshold()[0] > before[0]
        with rarely_searched():
            pass
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before


def test_a_reader_that_fails_restores_it_too() -> None:
    before = gc.get_threshold()
    with pytest.raises(OSError, match="gone"), rarely_searched():
        raise OSError("gone")
    assert gc.get_threshold() == before


def test_who_switched_the_search_off_finds_it_off() -> None:
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with rarely_searched():
            assert gc.get_threshold()[0] == 0
        assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)
