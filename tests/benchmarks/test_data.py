"""A benchmark without its data says which, where it was looked for, and where to get it."""

import pytest

from benchmarks.data import WHERE, first_rows
from benchmarks.rounds import CASES
from engine.data import DataError


@pytest.mark.parametrize("source", WHERE)
def test_data_that_is_not_here_is_named_with_where_to_get_it(source, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path))

    with pytest.raises(DataError) as caught:
        first_rows(source, limit=10)

    said = str(caught.value)
    assert said.startswith(f'data.source = "{source}": ')
    assert str(tmp_path / source.removeprefix("parquet:")) in said
    assert said.endswith(WHERE[source])


def test_every_case_of_the_rounds_has_a_place():
    assert {case.source for case in CASES.values()} == WHERE.keys()
