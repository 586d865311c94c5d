from __future__ import annotations

from collections import Counter

import pytest

from siamese_sat.data.sampler import PKSampler
from siamese_sat.errors import InputError

LABELS = [c for c in range(6) for _ in range(10)]  # six classes of ten chips; chip i is of class i // 10


def batches(sampler: PKSampler) -> list[list[int]]:
    return list(sampler)


def test_a_batch_is_p_classes_of_k_different_chips() -> None:
    for batch in PKSampler(LABELS, 4, 3, batches_per_epoch=50):
        assert sorted(Counter(LABELS[i] for i in batch).values()) == [3, 3, 3, 3]
        assert len(set(batch)) == 12


def test_background_is_in_every_batch_once() -> None:
    seen = Counter(LABELS[i] for batch in PKSampler(LABELS, 3, 2, batches_per_epoch=50, background=5) for i in batch)
    assert seen[5] == 100
    assert set(seen) == set(range(6))
    assert {seen[c] for c in range(5)} == {40}  # the others take turns: 100 places for five classes, two chips each


@pytest.mark.parametrize("background", [None, 9])
def test_without_background_all_classes_take_turns(background: int | None) -> None:
    sampler = PKSampler(LABELS, 2, 2, batches_per_epoch=30, background=background)
    assert set(Counter(LABELS[i] for batch in sampler for i in batch).values()) == {20}


def test_no_chip_comes_again_before_its_class_is_through() -> None:
    seen = Counter(i for batch in PKSampler(LABELS, 6, 3, batches_per_epoch=10) for i in batch)
    assert set(seen.values()) == {3}  # 30 draws from ten chips
    seen = Counter(i for batch in PKSampler(LABELS, 6, 3, batches_per_epoch=3) for i in batch)
    assert set(seen.values()) == {1}


def test_fewer_classes_than_p_are_all_in_every_batch() -> None:
    for batch in PKSampler(LABELS[:20], 8, 3, batches_per_epoch=5):
        assert Counter(LABELS[i] for i in batch) == {0: 3, 1: 3}


def test_fewer_chips_than_k_are_all_there_and_repeat() -> None:
    labels = [0, 0, 1, 1, 1, 1, 1, 1, 2]
    for batch in PKSampler(labels, 3, 5, batches_per_epoch=10):
        count = Counter(batch)
        assert sorted(count[i] for i in (0, 1)) == [2, 3]
        assert [count[i] for i in range(2, 8)].count(1) == 5
        assert count[8] == 5


@pytest.mark.parametrize(
    ("p", "k", "batches_per_epoch", "ranks", "expected"),
    [(3, 4, None, 1, 5), (4, 4, None, 1, 4), (3, 4, 7, 1, 7), (3, 4, 7, 2, 4), (8, 5, None, 1, 2), (3, 4, 1, 3, 1)],
)
def test_length_of_an_epoch(p: int, k: int, batches_per_epoch: int | None, ranks: int, expected: int) -> None:
    sampler = PKSampler(LABELS, p, k, batches_per_epoch, num_replicas=ranks, rank=0)
    assert len(sampler) == len(batches(sampler)) == expected


def test_an_epoch_changes_the_batches_and_brings_them_back() -> None:
    sampler = PKSampler(LABELS, 3, 3, seed=4)
    first = batches(sampler)
    assert batches(sampler) == first
    sampler.set_epoch(1)
    second = batches(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert batches(sampler) == first
    fresh = PKSampler(LABELS, 3, 3, seed=4)
    fresh.set_epoch(1)
    assert batches(fresh) == second
    assert batches(PKSampler(LABELS, 3, 3, seed=5)) != first


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_out_one_sequence(ranks: int) -> None:
    whole = batches(PKSampler(LABELS, 3, 3, batches_per_epoch=12, background=0, num_replicas=1, rank=0))
    parts = [
        batches(PKSampler(LABELS, 3, 3, batches_per_epoch=12, background=0, num_replicas=ranks, rank=r))
        for r in range(ranks)
    ]
    assert [part[i] for i in range(12 // ranks) for part in parts] == whole
    assert len({tuple(b) for b in whole}) == 12


@pytest.mark.parametrize(("labels", "p", "k"), [(LABELS, 1, 3), (LABELS, 3, 1), ([2, 2, 2], 3, 3)])
def test_what_has_no_pairs_is_refused(labels: list[int], p: int, k: int) -> None:
    with pytest.raises(InputError):
        PKSampler(labels, p, k)
