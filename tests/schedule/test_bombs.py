"""Small files that ask for much memory are refused before they are expanded. `tests/bombs.py` measures more of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from acodm_cli.errors import ScheduleError
from acodm_cli.schedule.schedule import Schedule
from tests import bombs


def test_what_a_file_expands_to_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for make, size, message in (
        (bombs.long_dictionary, 20, "column domain expands to more than 16,777,536 bytes for 20 rows"),
        (bombs.false_header, 127, "column step expands to more than 33,554,432 bytes for 1,048,576 rows"),
        (bombs.many_rows, 4, "are more than acodm expands"),
        (bombs.large_description, 0, "is not valid JSON"),
    ):
        make(path, size)
        with pytest.raises(ScheduleError, match=message):
            Schedule.read(path)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("page", ["1.0", "2.0"])
def test_ordinary_files_of_other_writers_are_read(compression: str, page: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        bombs.ordinary(5000),
        path,
        compression=compression,
        data_page_version=page,
        data_page_size=500,
        row_group_size=2000,
    )
    assert len(Schedule.read(path)) == 5000
