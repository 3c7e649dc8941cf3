"""In which order a training takes its rows, so that little of a batch is padding.

ZeRO-3 gathers weights layer by layer in all processes together, so that each micro-batch lasts as long as the longest
of them; in random order a micro-batch's and the processes' rows differ in length. Which rows a global step has decides
what is learnt; their order inside it decides only what waits for what.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler


class SortedInSteps(Sampler[int]):
    """The random order that the trainer would take, sorted inside each global step: the longest rows first.

    So what does not fit the card shows at once. Consecutive micro-batches go to the processes in turn.
    """

    def __init__(self, lengths: Sequence[int], global_batch: int, seed: int | None) -> None:
        self.lengths, self.global_batch = lengths, global_batch
        self.random = SeedableRandomSampler(range(len(lengths)), data_seed=seed)

    def __iter__(self) -> Iterator[int]:
        order = list(self.random)
        for start in range(0, len(order), self.global_batch):
            yield from sorted(order[start : start + self.global_batch], key=lambda row: -self.lengths[row])

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """As the sampler's that it sorts."""
        self.random.set_epoch(epoch)


def lengths(dataset: Any) -> list[int]:
    """Tokens of each row as it is padded: its prompt with the longer of its completions."""
    import pyarrow.compute as pc

    prompt, chosen, rejected = (
        pc.list_value_length(dataset.data.column(f"{part}_ids")) for part in ("prompt", "chosen", "rejected")
    )
    return list(pc.add(prompt, pc.max_element_wise(chosen, rejected)).to_pylist())


def padded_per_real(order: Sequence[int], lengths: Sequence[int], micro_batch: int, processes: int) -> float:
    """Tokens that all processes spend the time of, for each token that there is, when rows are taken in this order.

    A micro-step lasts as long as its longest row in all processes.
    """
    at_once = micro_batch * processes
    steps = [[lengths[row] for row in order[start : start + at_once]] for start in range(0, len(order), at_once)]
    return at_once * sum(map(max, steps)) / sum(map(sum, steps))
