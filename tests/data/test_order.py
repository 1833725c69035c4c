import threading

import numpy as np
import pytest

from vision_jax.data import order


def test_random_bits_are_splitmix64():
    """One word of the key, worked out with Python's integers by the published algorithm."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    for word in (0, 1, 12345, 2**63):
        expected = mix((mix((golden + word) % 2**64) + golden) % 2**64)
        assert int(order.random_bits(np.uint64(word))[0]) == expected


def test_orders_never_change():
    """Fixed numbers: another order would break the continuation of every run that exists."""
    assert order.permutation(0, 0, 10).tolist() == [6, 0, 4, 3, 2, 9, 5, 8, 7, 1]
    assert order.permutation(1, 2, 10).tolist() == [1, 3, 7, 2, 5, 9, 6, 0, 4, 8]


def test_random_uniform_is_uniform_and_independent():
    values = order.random_uniform(1, 7, 3, np.arange(20_000)[:, None], np.arange(4)[None, :])
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in values.T])
    chi_squared = ((counts - 1000) ** 2 / 1000).sum(axis=1)
    assert (chi_squared < 50).all()  # 19 degrees of freedom: exceeded once in 10,000
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]) < 0.03


def test_each_epoch_is_another_permutation():
    epochs = [order.permutation(0, epoch, 1000) for epoch in range(3)] + [order.permutation(1, 0, 1000)]
    for permutation in epochs:
        assert sorted(permutation) == list(range(1000))
    assert len({tuple(p) for p in epochs}) == 4


def test_train_order_visits_each_record_at_most_once_an_epoch():
    train = order.TrainOrder(num_records=103, batch_size=10, seed=3)
    assert train.steps_per_epoch == 10
    for epoch in range(3):
        steps = range(10 * epoch, 10 * epoch + 10)
        records = np.concatenate([train.records(step) for step in steps])
        assert len(set(records)) == 100
        assert {visit for step in steps for visit in train.visits(step)} == {epoch}


@pytest.mark.parametrize("num_records", [1, 7, 8, 9, 16])
def test_eval_order_visits_each_record_once(num_records: int):
    evaluation = order.EvalOrder(num_records, batch_size=8)
    records = np.concatenate([evaluation.records(batch) for batch in range(evaluation.num_batches)])
    assert records[records >= 0].tolist() == list(range(num_records))
    assert (records[num_records:] == -1).all()
    assert len(records) % 8 == 0


@pytest.mark.parametrize(("batch_size", "repeats"), [(12, 3), (10, 4)])
def test_repeated_augmentation_sees_each_record_so_often_in_a_row(batch_size: int, repeats: int):
    train = order.TrainOrder(num_records=60, batch_size=batch_size, seed=0, repeats=repeats)
    assert train.steps_per_epoch == 60 // batch_size
    for epoch in (0, 1):
        steps = range(epoch * train.steps_per_epoch, (epoch + 1) * train.steps_per_epoch)
        pairs = [pair for s in steps for pair in zip(train.records(s).tolist(), train.visits(s).tolist(), strict=True)]
        assert len(set(pairs)) == 60  # never the same crop twice
        assert {visit for _, visit in pairs} == set(range(repeats * epoch, repeats * epoch + repeats))
        first = order.permutation(0, epoch, 60)[: 60 // repeats]
        assert sorted(record for record, _ in pairs) == sorted(np.repeat(first, repeats).tolist())


def test_copies_are_far_apart():
    records = order.TrainOrder(num_records=60, batch_size=12, seed=0, repeats=3).records(1)
    assert (records[:4] == records[4:8]).all()
    assert (records[:4] == records[8:]).all()
    assert len(set(records.tolist())) == 4


def test_balanced_order_sees_every_class_equally_often():
    labels = np.repeat([0, 1, 2, 4], [70, 20, 6, 4])  # no record of class 3
    balanced = order.BalancedOrder(labels, 5, batch_size=20, seed=0)
    assert balanced.steps_per_epoch == 5
    records = np.concatenate([balanced.records(step) for step in range(20)])  # four epochs
    visits = np.concatenate([balanced.visits(step) for step in range(20)])
    assert np.bincount(labels[records], minlength=5).tolist() == [100, 100, 100, 0, 100]
    # Within a class every record comes once before any comes again, and no visit is made twice.
    for label, size in ((0, 70), (1, 20), (2, 6), (4, 4)):
        counts = np.bincount(records[labels[records] == label], minlength=100)[labels == label]
        assert set(counts.tolist()) <= {100 // size, -(-100 // size)}
    assert len(set(zip(records.tolist(), visits.tolist(), strict=True))) == 400
    again = order.BalancedOrder(labels, 5, batch_size=20, seed=0)
    assert (again.records(13) == balanced.records(13)).all()
    other = order.BalancedOrder(labels, 5, batch_size=20, seed=1)
    assert (other.records(13) != balanced.records(13)).any()


def test_subsets_are_nested_and_random():
    few, more = order.subset(1000, 100), order.subset(1000, 300)
    assert set(few.tolist()) < set(more.tolist())
    assert (np.diff(more) > 0).all()
    assert abs(few.mean() - 500) < 100


def test_orders_take_four_bytes_a_record():
    balanced = order.BalancedOrder(np.arange(100) % 3, 3, batch_size=20, seed=0)
    arrays = (order.permutation(0, 0, 100), balanced.records(0), balanced.visits(0))
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}


def test_the_order_of_the_next_epoch_is_made_ahead(monkeypatch: pytest.MonkeyPatch):
    """From the middle of an epoch on, on another thread; what an epoch sees is the same."""
    made: list[tuple[int, str]] = []
    random_bits = order.random_bits

    def noted(*key: int | np.ndarray) -> np.ndarray:
        made.append((int(key[2]), threading.current_thread().name))
        return random_bits(*key)

    train = order.TrainOrder(num_records=64, batch_size=8, seed=991)
    expected = [train.records(step).tolist() for step in range(24)]
    order.permutation.cache_clear()
    monkeypatch.setattr(order, "random_bits", noted)
    monkeypatch.setattr(order, "_MANY", 64)
    found = []
    for step in range(24):
        found.append(train.records(step).tolist())
        for thread in threading.enumerate():
            if thread.name == "order":
                thread.join()
        assert [epoch for epoch, _ in made] == list(range((step + 4) // 8 + 1))
    assert found == expected
    assert [name for _, name in made] == ["MainThread", "order", "order", "order"]
