import concurrent.futures
import pathlib
import resource

import numpy as np
import pytest
from miniature import crc32c, write_tfrecord

from vision_jax.data import tfrecord
from vision_jax.errors import DataError


def test_checksum_is_the_published_one():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    # RFC 3720, B.4: 32 bytes of zeros, of ones, and 0 to 31.
    rows = np.stack([np.zeros(32), np.full(32, 255), np.arange(32)]).astype(np.uint8)
    crcs = np.array([0x8A9136AA, 0x62A8AB43, 0x46DD794E], np.uint64)
    expected = ((crcs >> 15 | crcs << 17) + 0xA282EAD8) & 0xFFFFFFFF
    # The shift to the left goes beyond 32 bits, which the mask of the sum cuts off as in the definition.
    assert tfrecord.masked_crc32c(rows).tolist() == expected.tolist()


def make(tmp_path: pathlib.Path) -> tuple[list[pathlib.Path], list[bytes]]:
    random = np.random.RandomState(0)
    records = [random.bytes(random.randint(0, 400)) for _ in range(40)]
    parts = [records[:13], [], records[13:14], records[14:]]
    return [write_tfrecord(tmp_path / f"{i}.tfrecord", part) for i, part in enumerate(parts)], records


def test_records_at_random(tmp_path: pathlib.Path):
    paths, records = make(tmp_path)
    with tfrecord.TfRecordFiles(paths, tmp_path) as files:
        assert len(files) == 40
        assert files.lengths == [13, 0, 1, 26]
        order = np.random.RandomState(1).permutation(np.repeat(np.arange(40), 20))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda i: files[i], order)) == [records[i] for i in order]
        assert files[np.int64(39)] == records[39]
        with pytest.raises(IndexError):
            files[40]


def test_more_files_than_may_be_open(tmp_path: pathlib.Path):
    paths, records = make(tmp_path)
    files = tfrecord.TfRecordFiles(paths, tmp_path)
    files._max_open = 1
    assert [files[i] for i in range(40)] == records
    assert len(files._descriptors) == 1
    files.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 600), hard))
        assert tfrecord._allow_descriptors(300) == (300 if hard >= 812 or hard < 0 else max(0, hard - 512))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_index_is_made_once_and_again_where_it_must(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    paths, records = make(tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir()
    indexed = []
    plain = tfrecord.index_file
    monkeypatch.setattr(tfrecord, "index_file", lambda path: indexed.append(path) or plain(path))

    def read() -> list[bytes]:
        indexed.clear()
        with tfrecord.TfRecordFiles(paths, cache) as files:
            return [files[i] for i in range(len(files))]

    assert read() == records
    assert sorted(indexed) == paths
    assert read() == records
    assert not indexed
    (index,) = cache.iterdir()
    whole = index.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2] + b"\x77" + whole[len(whole) // 2 + 1 :], b""):
        caplog.clear()
        index.write_bytes(damaged)
        assert read() == records
        assert sorted(indexed) == paths
        assert "is damaged" in caplog.text
        assert index.read_bytes() == whole
    write_tfrecord(paths[1], [b"new"])
    assert read() == [*records[:13], b"new", *records[13:]]
    assert sorted(indexed) == paths


def test_damaged_files_are_named(tmp_path: pathlib.Path):
    path = write_tfrecord(tmp_path / "x.tfrecord", [b"a" * 10, b"b" * 20, b"c" * 30])
    whole = path.read_bytes()  # the records begin at bytes 0, 26 and 62, and end at 108
    for size, message in ((107, "byte 62 goes beyond the end, byte 107"), (70, "byte 62"), (30, "byte 26 goes beyond")):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf"x\.tfrecord is truncated: .*{message}"):
            tfrecord.TfRecordFiles([path], tmp_path)
    for byte in (26, 30, 35):  # the length, its highest bytes, its checksum
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        with pytest.raises(DataError, match=r"x\.tfrecord is damaged.*byte 26 does not match"):
            tfrecord.TfRecordFiles([path], tmp_path)
    path.write_bytes(whole)
    with tfrecord.TfRecordFiles([path], tmp_path) as files:
        path.write_bytes(whole[:100])
        with pytest.raises(DataError, match="has become shorter"):
            files[2]
    with pytest.raises(DataError, match=r"Cannot read .*gone"):
        tfrecord.TfRecordFiles([tmp_path / "gone"], tmp_path)
