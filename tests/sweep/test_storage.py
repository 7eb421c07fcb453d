"""A study's database that nobody has opened yet, opened by several at one moment."""

from driving import opened_at_once


def test_eight_processes_open_a_fresh_database_at_once(tmp_path):
    assert opened_at_once(8, None, tmp_path) == [0] * 8
