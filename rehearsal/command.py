"""`python -m rehearsal.command ROWS CARDS reproduce ...`: the suite's own command, for some rows and on fake cards.

What is other than in production is so in this process alone: whether the machine has the cards, how much disk
the real models would take, which rows are left out, and that a row's own sizes may be shrunk too. Runs are started by
the real Snakemake and see cards that no driver knows; SAO_REHEARSAL lets them do without.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from unittest.mock import patch

from sao_lib.__main__ import main as command
from sao_lib.launch import cards, graph, reproduce
from sao_lib.launch.cards import Card
from sao_lib.plan import planning
from sao_lib.plan.planning import Plan

LEFT_OUT = "not rehearsed"


def fake_cards(count: int) -> list[Card]:
    """Cards in name only: a process that sees them, and nothing else, sees none."""
    return [Card(f"fake-{n}", "card of a rehearsal", 80.0, "580", f"FAKE-{n}") for n in range(count)]


@contextlib.contextmanager
def rows_may_be_shrunk() -> Iterator[None]:
    """The command line may lie over what rows set themselves, such as a number of pairs."""
    with patch.object(planning, "_refuse_varied", lambda *_: None):
        yield


def of_rows(verified: Callable[[Plan], Plan], names: Sequence[str]) -> Callable[[Plan], Plan]:
    """`planning.verified`, with rows other than `names` left out."""

    def only(plan: Plan) -> Plan:
        found = verified(plan)
        kept = [row if row.name in names else replace(row, skipped=row.skipped or LEFT_OUT) for row in found.rows]
        return planning.joined(replace(found, rows=kept))

    return only


def main(words: Sequence[str]) -> int:
    """Do `words[2:]` for the rows and on the number of cards before them; its exit status."""
    rows, count = words[0].split(","), int(words[1])
    with (
        rows_may_be_shrunk(),
        patch.object(planning, "verified", of_rows(planning.verified, rows)),
        patch.object(cards, "missing", lambda machine: []),
        patch.object(graph, "cards_here", lambda: fake_cards(count)),
        patch.object(reproduce, "_check_disk", lambda *_: None),
    ):
        return command(list(words[2:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
