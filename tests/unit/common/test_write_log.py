"""The write-ahead log on a disk that fails: what was reported safe is there after a loss of power, and nothing else."""

from itertools import count
from pathlib import Path

import pytest

from services.common.write_log import WriteLog
from tests.fakes.failing_disk import failing_disk


def test_nothing_rests_on_a_file_whose_sync_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(1)
    with failing_disk(monkeypatch) as disk:
        log = WriteLog(tmp_path, lambda: next(clock))
        log.adopt()
        log.append([b"one"])
        for failing in (["fdatasync"], ["fsync", "fdatasync"], ["fdatasync"]):
            disk.failing = failing
            with pytest.raises(OSError, match="Input/output error"):
                log.append([b"refused"])
        disk.failing = ()
        log.append([b"two"])
        log.append([b"three"])
        log.close()
        assert not disk.trusted_again
        disk.lose_power(tmp_path)
    after = WriteLog(tmp_path, lambda: next(clock))
    after.adopt()
    assert [record for segment in after.sealed for record in segment.records()] == [b"one", b"two", b"three"]
    after.close()
