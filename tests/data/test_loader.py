import dataclasses
import threading
import time
from typing import Any

import numpy as np
import pytest
from conftest import Pictures

from vision_jax.data import order, sources
from vision_jax.data.loader import CHUNK, HostBatch, Loader, Prefetcher
from vision_jax.data.transforms import TrainTransform
from vision_jax.data.views import View
from vision_jax.errors import DataError


class Source(Pictures):
    """Forty pictures, the label of which is their number modulo 4."""

    def __init__(self) -> None:
        super().__init__([i % 4 for i in range(40)], size=40, num_classes=4)


TRANSFORM = TrainTransform((View(size=16, scale=(0.3, 1.0)),), channels=3, seed=0)


def load(source: Source, the_order: object, step: int, rows: np.ndarray, num_threads: int = 2) -> HostBatch:
    with Loader(source, the_order, TRANSFORM, rows, num_threads) as loader:
        return loader.start(step)()


def test_rows_come_from_the_order():
    source, train = Source(), order.TrainOrder(40, 20, seed=0)
    batch = load(source, train, 1, np.arange(20))
    records = train.records(1)
    assert (batch["label"] == records % 4).all()
    assert (batch["mask"] == 1).all()
    expected = {"image": np.empty((20, 16, 16, 3), np.uint8), "label": np.empty(20, np.int32)}
    TRANSFORM([source[i] for i in records], records, np.zeros(20, int), expected)
    assert (batch["image"] == expected["image"]).all()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_parts_of_any_number_of_processes_make_the_same_batch(num_threads: int):
    source, train = Source(), order.TrainOrder(40, 40, seed=0)
    whole = load(source, train, 5, np.arange(40))
    for processes in (2, 4):
        parts = [load(source, train, 5, rows, num_threads) for rows in np.split(np.arange(40), processes)]
        assert (np.concatenate([part["image"] for part in parts]) == whole["image"]).all()
        assert (np.concatenate([part["label"] for part in parts]) == whole["label"]).all()


def test_last_evaluation_batch_is_padded_and_masked():
    evaluation = order.EvalOrder(40, 24)
    batch = load(Source(), evaluation, 1, np.arange(24))
    assert batch["mask"].tolist() == [1.0] * 16 + [0.0] * 8
    assert batch["label"].tolist() == [i % 4 for i in range(24, 40)] + [0] * 8
    assert (batch["image"][16:] == 0).all()


def test_damaged_record_is_named():
    source, train = Source(), order.TrainOrder(40, 40, seed=0)
    source.records[23] = (source.records[23][0][:100], 3)
    with pytest.raises(DataError, match="Cannot decode picture 23"):
        load(source, train, 0, np.arange(40))


def test_label_out_of_range_is_named():
    source, train = Source(), order.TrainOrder(40, 40, seed=0)
    source.records[7] = (source.records[7][0], 4)
    with pytest.raises(DataError, match="picture 7 has the label 4, but there are 4 classes, 0 to 3"):
        load(source, train, 0, np.arange(40))


def test_unreadable_record_is_named():
    class Unreadable(Source):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 11:
                raise OSError("disk on fire")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="Cannot read picture 11: disk on fire"):
        load(Unreadable(), order.TrainOrder(40, 40, seed=0), 0, np.arange(40))


def copied(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: rows.copy() for name, rows in batch.items()}


def prefetch(source: Source, steps: range, depth: int = 2, batch_size: int = 20) -> tuple[Loader, Prefetcher]:
    loader = Loader(source, order.TrainOrder(40, batch_size, seed=0), TRANSFORM, np.arange(batch_size), 2)
    return loader, Prefetcher(loader, steps, copied, depth)


def threads() -> set[str]:
    return {t.name.partition("_")[0] for t in threading.enumerate() if t.name.startswith(("decode", "prefetch"))}


def test_prefetcher_gives_the_steps_in_order_and_ends():
    source = Source()
    loader, batches = prefetch(source, range(3, 9))
    with loader, batches:
        got = list(batches)
        assert next(batches, "nothing") == "nothing"
    train = order.TrainOrder(40, 20, seed=0)
    assert [b["label"].tolist() for b in got] == [(train.records(step) % 4).tolist() for step in range(3, 9)]
    assert not threads()


def test_closing_in_the_middle_leaves_no_thread():
    loader, batches = prefetch(Source(), range(1000))
    with loader, batches:
        next(batches)
        assert threads() == {"decode", "prefetch"}
    assert not threads()


def test_errors_reach_the_consumer_and_leave_no_thread():
    source = Source()
    train = order.TrainOrder(40, 20, seed=0)
    bad = int(train.records(2)[0])
    source.records[bad] = (b"", 0)
    loader, batches = prefetch(source, range(10))

    def consume() -> list[int]:
        with loader, batches:
            return [len(b["label"]) for b in batches]

    with pytest.raises(DataError, match=f"picture {bad}"):
        consume()
    assert not threads()


def test_waiting_is_measured():
    class Slow(Source):
        def __getitem__(self, index: int) -> dict[str, Any]:
            time.sleep(0.02)
            return super().__getitem__(index)

    loader, batches = prefetch(Slow(), range(2))
    with loader, batches:
        next(batches)
    assert batches.seconds_waited >= 0.02 * CHUNK / 2


def damaged_source() -> Source:
    """Records 3 and 30 cannot be decoded, record 17 cannot be read."""

    class Damaged(Source):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 17:
                raise ValueError("checksum mismatch")
            return super().__getitem__(index)

    source = Damaged()
    for record in (3, 30):
        source.records[record] = (source.records[record][0][:100], source.records[record][1])
    return source


def load_tolerant(source: Source, step: int, rows: np.ndarray, max_bad_records: int, num_threads: int = 2) -> HostBatch:
    the_order = order.TrainOrder(40, 40, seed=0)
    with Loader(source, the_order, TRANSFORM, rows, num_threads, max_bad_records=max_bad_records) as loader:
        return loader.start(step)()


def test_damaged_records_are_replaced_and_counted(caplog: pytest.LogCaptureFixture):
    records = order.TrainOrder(40, 40, seed=0).records(0)
    bad = np.isin(records, [3, 17, 30])
    whole = load(Source(), order.TrainOrder(40, 40, seed=0), 0, np.arange(40))
    batch = load_tolerant(damaged_source(), 0, np.arange(40), max_bad_records=3)
    assert (batch["replaced"] == bad).all()
    assert (batch["image"][~bad] == whole["image"][~bad]).all()
    assert (batch["label"][~bad] == whole["label"][~bad]).all()
    assert (batch["image"][bad].reshape(3, -1).std(axis=1) > 0).all()
    assert "Cannot read picture 17: checksum mismatch" in caplog.text
    assert "(3 of at most 3)" in caplog.text
    # Which records stand for them depends on nothing but the record and its visit.
    for threads, parts in ((1, 1), (3, 2), (2, 4)):
        pieces = [load_tolerant(damaged_source(), 0, rows, 3, threads) for rows in np.split(np.arange(40), parts)]
        assert (np.concatenate([piece["image"] for piece in pieces]) == batch["image"]).all()
        assert (np.concatenate([piece["label"] for piece in pieces]) == batch["label"]).all()
    other = load_tolerant(damaged_source(), 1, np.arange(40), max_bad_records=3)
    mine, theirs = (
        {
            int(r): b["label"][i]
            for i, r in enumerate(order.TrainOrder(40, 40, seed=0).records(step))
            if r in (3, 17, 30)
        }
        for step, b in ((0, batch), (1, other))
    )
    assert mine != theirs or (other["image"][other["replaced"] == 1] != batch["image"][batch["replaced"] == 1]).any()


def test_one_damaged_record_too_many_is_an_error():
    with pytest.raises(DataError, match=r"more than data\.max_bad_records=2"):
        load_tolerant(damaged_source(), 0, np.arange(40), max_bad_records=2)


def test_a_source_of_nothing_but_damage_is_an_error():
    source = Source()
    source.records = [(b"", 0)] * 40
    with pytest.raises(DataError, match="and so are 100 others"):
        load_tolerant(source, 0, np.arange(40), max_bad_records=1000)


@pytest.mark.parametrize("bad", [[0, 1], [0, 1, 2, 5], [1, 2], list(range(40))])
def test_damaged_records_are_left_out(bad: list[int]):
    """In evaluation; those whose neighbors are damaged too, for which no other record can stand."""
    source = Source()
    for index in bad:
        source.records[index] = (source.records[index][0][:100], 0)
    whole = load(Source(), order.EvalOrder(40, 40), 0, np.arange(40))
    with Loader(
        source, order.EvalOrder(40, 40), TRANSFORM, np.arange(40), 2, max_bad_records=40, leave_out=True
    ) as loader:
        batch = loader.start(0)()
        assert sorted(loader.problems) == bad
    kept = np.setdiff1d(np.arange(40), bad)
    assert np.flatnonzero(batch["mask"]).tolist() == kept.tolist()
    assert (batch["image"][kept] == whole["image"][kept]).all()
    assert not batch["image"][bad].any()


def test_storage_that_fails_is_never_replaced():
    class Failing(Source):
        def __getitem__(self, index: int) -> dict[str, Any]:
            raise OSError("disk on fire")

    with pytest.raises(DataError, match="disk on fire"):
        load_tolerant(Failing(), 0, np.arange(40), max_bad_records=1000)


def test_memory_is_used_again_once_it_is_released():
    train = order.TrainOrder(40, 20, seed=0)
    with Loader(Source(), train, TRANSFORM, np.arange(20), 2) as loader:
        first = loader.start(0)()
        second = loader.start(1)()
        expected = second["image"].copy()
        assert not np.shares_memory(first["image"], second["image"])
        for step in (2, 3):  # twice: what was used again is used again
            first.release()
            first = loader.start(step)()
            assert (first["image"] == load(Source(), train, step, np.arange(20))["image"]).all()
        assert len({batch["image"].ctypes.data for batch in (first, second, loader.start(4)())}) == 3
        assert (second["image"] == expected).all()


def test_labels_of_damaged_records_are_named():
    source = damaged_source()
    with pytest.raises(DataError, match="Cannot read picture 17: checksum mismatch"):
        sources.read_labels(source, 2)
    other = Source()
    other.records[5] = (other.records[5][0], -1)
    with pytest.raises(DataError, match="picture 5 has the label -1"):
        sources.read_labels(other, 2)


def test_sizes_follow_the_step():
    transform = dataclasses.replace(TRANSFORM, sizes=((0, 8), (3, 12), (5, 16)))
    with Loader(Source(), order.TrainOrder(40, 20, seed=0), transform, np.arange(20), 2) as loader:
        assert [loader.start(step)()["image"].shape[1] for step in range(7)] == [8, 8, 8, 12, 12, 16, 16]


def test_loading_overlaps_what_the_consumer_does():
    """With a step that takes longer than its batch, nothing but the first batch is waited for."""
    source = Source()
    loader, batches = prefetch(source, range(12))
    with loader, batches:
        next(batches)
        waited = batches.seconds_waited
        for _ in range(11):
            time.sleep(0.1)  # a batch of 20 small pictures takes about 5 ms
            next(batches)
    assert batches.seconds_waited - waited < 0.3 * 11 * 0.1


def test_damaged_records_are_counted_one_after_another(caplog: pytest.LogCaptureFixture):
    """Two threads find one each at the same time."""
    both = threading.Barrier(2, timeout=10)

    class Waiting(Source):
        def describe(self, index: int) -> str:
            both.wait()
            return super().describe(index)

    with Loader(Waiting(), order.TrainOrder(40, 40, seed=0), TRANSFORM, np.arange(40), 2, max_bad_records=2) as loader:
        finders = [
            threading.Thread(target=loader._tolerate, args=(record, "decode", "it is damaged")) for record in (3, 5)
        ]
        for finder in finders:
            finder.start()
        for finder in finders:
            finder.join()
    assert "(1 of at most 2)" in caplog.text
    assert "(2 of at most 2)" in caplog.text


def test_records_without_labels_make_batches_without():
    class Unlabelled(Source):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": super().__getitem__(index)["image"]}

    the_order, transform = order.TrainOrder(40, 20, seed=0), dataclasses.replace(TRANSFORM, copied=())
    with Loader(Unlabelled(), the_order, transform, np.arange(20), 2) as loader:
        batch = loader.start(0)()
    assert list(batch.arrays) == ["image", "mask"]
    assert (batch["image"] == load(Source(), the_order, 0, np.arange(20))["image"]).all()
    with pytest.raises(DataError, match="picture 0 has no label"):
        sources.read_labels(Unlabelled(), 1)
