"""P x K batches: P classes, K chips of each (Hermans et al. 2017, In Defense of the Triplet Loss)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from siamese_sat.distributed import ranks
from siamese_sat.errors import InputError


class PKSampler(Sampler[list[int]]):
    """Batches of ``classes_per_batch`` classes with ``chips_per_class`` chips each.

    The rule of a batch:
        - P different classes are drawn; background, where there is one, is always among them.
        - With fewer classes than P, every class is in every batch.
        - K chips of a class are drawn without repeating one until all of the class were drawn.
        - With fewer chips than K, all of them are in the batch and some repeat.

    The length of an epoch:
        - ``batches_per_epoch`` over all ranks, or as many batches as hold each chip once on average; divided by the
          number of ranks, rounded up, so that every rank has as many. Rank r takes the batches r, r + ranks, ... of
          one sequence that all ranks draw alike: no two ranks get the same batch.

    Two samplers with the same arguments and epoch yield the same batches. Lightning calls `set_epoch`.

    Args:
        labels: class number of each chip.
        classes_per_batch: P.
        chips_per_class: K.
        batches_per_epoch: None for one pass on average.
        background: class number of background, or None.
        seed: of all draws.
        num_replicas: ranks; None asks torch.distributed.
        rank: this rank; None asks torch.distributed.

    Raises:
        InputError: P or K below 2, or fewer than two classes.
    """

    def __init__(
        self,
        labels: Sequence[int],
        classes_per_batch: int = 8,
        chips_per_class: int = 3,
        batches_per_epoch: int | None = None,
        background: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if classes_per_batch < 2 or chips_per_class < 2:
            raise InputError(
                f"sampler: {classes_per_batch} classes x {chips_per_class} chips has no pairs to learn from; "
                f"both numbers must be 2 or more."
            )
        numbers = np.asarray(labels)
        self.members = {int(c): np.flatnonzero(numbers == c) for c in np.unique(numbers)}
        if len(self.members) < 2:
            raise InputError("A metric is learned between at least two classes, background counted; got one.")
        own, count = ranks()
        self.num_replicas, self.rank = num_replicas or count, own if rank is None else rank
        self.p = min(classes_per_batch, len(self.members))
        self.k = chips_per_class
        self.background = background if background in self.members else None
        total = batches_per_epoch or math.ceil(len(numbers) / (self.p * self.k))
        self.length = math.ceil(total / self.num_replicas)
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass the one of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        chips = {c: _Deck(members, rng) for c, members in self.members.items()}
        others = _Deck(np.array([c for c in self.members if c != self.background]), rng)
        for number in range(self.length * self.num_replicas):
            fixed = [] if self.background is None else [self.background]
            drawn = fixed + others.draw(self.p - len(fixed))
            batch = [i for c in drawn for i in chips[c].draw(self.k)]
            if number % self.num_replicas == self.rank:
                yield batch


class _Deck:
    """Deals items in random order; shuffles anew when it runs out, never two alike in one hand if it can."""

    def __init__(self, items: np.ndarray, rng: np.random.Generator) -> None:
        self.items, self.rng = items, rng
        self.rest: list[int] = []

    def draw(self, n: int) -> list[int]:
        hand: list[int] = []
        while len(hand) < n:
            if not self.rest:
                self.rest = self.rng.permutation(self.items).tolist()
            fresh = next((i for i in self.rest if i not in hand), None)
            if fresh is None and len(set(hand)) == len(self.items):
                hand.append(self.rest.pop(0))  # fewer items than asked for: repeat
            elif fresh is None:
                self.rest = self.rng.permutation(self.items).tolist()
            else:
                self.rest.remove(fresh)
                hand.append(fresh)
        return hand
