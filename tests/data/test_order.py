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
        assert {train.epoch(step) for step in steps} == {epoch}


@pytest.mark.parametrize("num_records", [1, 7, 8, 9, 16])
def test_eval_order_visits_each_record_once(num_records: int):
    evaluation = order.EvalOrder(num_records, batch_size=8)
    records = np.concatenate([evaluation.records(batch) for batch in range(evaluation.num_batches)])
    assert records[records >= 0].tolist() == list(range(num_records))
    assert (records[num_records:] == -1).all()
    assert len(records) % 8 == 0
