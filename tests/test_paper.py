"""The paper's numbers: what we typed is what it prints, and what it prints disagrees with itself just so."""

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

import published
import pytest

from sao_lib.errors import SaoError
from sao_lib.report import paper
from sao_lib.yaml_files import read_yaml

TEXT = "paper/2510.06652.txt"
needs_text = published.needs("params/paper.yaml against the paper's text", TEXT)
TABLES = [f"table{number}" for number in range(1, 12)]
NUMBER = re.compile(r"[+-]?\d+\.\d+")
CELL = re.compile(r"([+-]?\d+\.\d+) ?(?:\(([+-]\d+\.\d+)\))?")
EXACT: dict[str, Any] = paper.yaml.load(paper.PAPER.read_text(), paper._Exact)


@pytest.mark.parametrize("table", ["table3", "table7"])
def test_printed_averages_are_the_means_of_their_rows(table: str) -> None:
    for row in paper.numbers(table).values():
        mean = fmean(value for column, value in row.items() if column != "average")
        assert abs(mean - row["average"]) <= 0.005 + 1e-9


@pytest.mark.parametrize("table", ["table1", "table2", "table10"])
def test_printed_deltas_are_the_differences_of_printed_numbers(table: str) -> None:
    rows, baseline = paper.numbers(table), read_yaml(paper.PAPER)[table]["baseline"]
    deltas = [(row, c) for row, columns in rows.items() for c in columns if c.endswith("_delta")]
    assert len(deltas) == {"table1": 8, "table2": 4, "table10": 4}[table]
    for row, column in deltas:
        own = column.removesuffix("_delta")
        assert rows[row][column] == pytest.approx(rows[row][own] - rows[baseline[row]][own], abs=1e-9)


def test_the_introductions_gain_over_ultrafeedback_is_table_fives() -> None:
    rows = paper.numbers("table5")
    assert rows["persona"]["wr"] - rows["ultrafeedback"]["wr"] == pytest.approx(16.46)
    assert 16.46 in [fact["value"] for fact in paper.facts()]


def test_the_known_disagreements_are_all_there_are() -> None:
    found = {d.what: d.values for d in paper.disagreements()}
    assert found == {
        "same/sao-10k-wr": ("74.04", "72.30", "74.04", "74.06", "74.06", "74.06"),
        "same/gemma-wr": ("39.3", "39.25", "39.30", "39.25", "39.30"),
        "ordered/size-wr/10k/wr": ("72", "74.06"),
        "ordered/self-feedback/gpt4o-mini/lc": ("70.28", "71.54"),
        "ordered/llama-judge/vanilla/wr": ("34.35", "39.30"),
        "half-wins/table5/random/wr": ("62.50", "62.4845"),
        "half-wins/table6/without-3/wr": ("73.14", "73.1677"),
        "half-wins/table8/vanilla/wr": ("39.30", "39.3168"),
        "half-wins/table8/gemma+gemma/wr": ("74.06", "74.0373"),
        "half-wins/table9/llama-3.1-70b/vanilla/wr": ("42.66", "42.6708"),
    }
    assert all(d.where for d in paper.disagreements())


def test_a_wrong_cell_is_noticed_by_every_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Change one printed number of each kind; what was quiet speaks."""
    known = {d.what for d in paper.disagreements()}
    changes = {
        "average: 74.41": "average/table3/gemma-sao/average",
        "arena_hard_delta: 13.5": "delta/table2/gemma-sao/arena_hard_delta",
        'value: 16.46, where: "1"': "stated/1/table5/persona/wr",
        "56.50, wr: 39.30": "same/gemma-lc",
        "math500: 49.60": "ordered/math500/gemma-simpo/math500",
        "wr: 49.81": "half-wins/table4/dpo/wr",
    }
    for text, key in changes.items():
        changed = NUMBER.sub(lambda found: str(Decimal(found[0]) - Decimal("3.03")), text, count=1)
        (tmp_path / "paper.yaml").write_text(paper.PAPER.read_text().replace(text, changed))
        with monkeypatch.context() as patch:
            patch.setattr(paper, "PAPER", tmp_path / "paper.yaml")
            assert key in {d.what for d in paper.disagreements()} - known, text


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("39.3", "39.30", True), ("39.3", "39.25", True), ("39.2", "39.25", True), ("39.25", "39.30", False),
        ("72", "71.6", True), ("72", "71.4", False), ("76.0", "76.02", True), ("-1.8", "-1.79", True),
    ],
)  # fmt: skip
def test_rounding(a: str, b: str, same: bool) -> None:
    assert paper.agree(Decimal(a), Decimal(b)) is same
    assert paper.agree(Decimal(b), Decimal(a)) is same


def test_an_unknown_table_is_one_sentence() -> None:
    with pytest.raises(SaoError, match="no rows of 'table12'; there are: table1"):
        paper.numbers("table12")


def printed_in(table: str) -> Counter[str]:
    """Numbers in the paper's own table, headers and labels left out, as printed and without a plus."""
    caption = rf"^Table {table.removeprefix('table')}: .*?\n\n(.*?)\n\n"
    found = re.search(caption, published.path(TEXT).read_text(), re.DOTALL | re.MULTILINE)
    assert found, table
    cells = [c.replace("<b>", "").replace("</b>", "") for line in found[1].split("\n") for c in line.split("\t")]
    return Counter(n.removeprefix("+") for c in cells if (hit := CELL.fullmatch(c)) for n in hit.groups() if n)


@needs_text
@pytest.mark.parametrize("table", TABLES)
def test_a_table_holds_the_papers_numbers_and_no_other(table: str) -> None:
    ours = [v for row in EXACT[table]["rows"].values() for v in row.values() if isinstance(v, Decimal)]
    assert Counter(map(str, ours)) == printed_in(table)


@needs_text
def test_prompts_and_counts_of_table_12_are_the_papers() -> None:
    text = published.path(TEXT).read_text()
    assert all(f"{row['prompt']}\t{row['count']}\n" in text for row in EXACT["table12"]["rows"])


@needs_text
def test_every_result_in_the_text_is_stated() -> None:
    """Percentages, signed differences and scores in the body's sentences, as printed."""
    body = published.path(TEXT).read_text().split("## 1 Introduction")[1].split("## 5 Conclusion")[0]
    prose = "\n".join(line for line in body.split("\n") if "\t" not in line)
    found = re.findall(
        r"(?<![\w.])(\d+\.\d+)(?=%)|\(([+-]\d+\.\d+)\)|(?<!\d)(\d\d\.\d\d)(?!\d)|score \((\d\.\d+)\)", prose
    )
    stated = {str(fact["value"]) for fact in EXACT["stated"]}
    printed = {n.removeprefix("+") for groups in found for n in groups if n}
    assert len(printed) > 60
    assert printed <= stated
