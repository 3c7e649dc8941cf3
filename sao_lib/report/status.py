"""The status of the paper's claims: what it prints, what that says, and what our runs say by profile. Nothing is typed.

The whole table is docs/status.md; the README has its counts, and what a finished table of our own measured, between
markers. All are made by `make status` from claims.json of the finished tables in outputs/reference.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sao_lib.errors import SaoError
from sao_lib.files import write_atomic
from sao_lib.plan import layers
from sao_lib.plan.claim import Claim
from sao_lib.plan.experiment import Experiment, experiments, read
from sao_lib.report import paper_side
from sao_lib.report.claims import NOT_RUN, controls
from sao_lib.report.paper_side import SUPPORTED, UNDECIDED
from sao_lib.report.rows import printed_rows
from sao_lib.report.table import markdown
from sao_lib.settings import PARAMS, ROOT

REFERENCE = ROOT / "outputs" / "reference"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "status.md"
BEGIN, END = "<!-- status -->", "<!-- end status -->"
OURS, OURS_END = "<!-- ours -->", "<!-- end ours -->"
Tables = Mapping[str, Mapping[str, Any]]  # experiment -> what its claims.json holds


def reference(folder: Path = REFERENCE) -> dict[str, Tables]:
    """What finished tables in the reference results say, {profile: {experiment: claims.json}}."""
    profiles = sorted(path.stem for path in (PARAMS / "profiles").glob("*.yaml"))
    tables = {p: {name: _read(folder / p / name) for name in experiments(ours=True)} for p in profiles}
    return {p: {name: found for name, found in own.items() if found} for p, own in tables.items()}


def _read(folder: Path) -> Mapping[str, Any] | None:
    path = folder / "claims.json"
    return dict(json.loads(path.read_text())) if path.is_file() else None


def _claims() -> Iterator[tuple[str, Experiment, Claim, dict[str, Any]]]:
    """The paper's claims in its order, each with its experiment and what the paper's own numbers say."""
    for name in experiments():
        experiment = read(name)
        printed = printed_rows(name, experiment)
        for claim in experiment.claims:
            if not claim.ours:
                yield name, experiment, claim, paper_side.side(claim, printed)


def lines(ours: Mapping[str, Tables]) -> list[list[str]]:
    """The table as strings, header first: a line for each claim of the paper, in its order."""
    out = [["Where", "Claim", "Paper", *(f"Ours, {profile}" for profile in ours), "Minutes", "Command"]]
    for name, experiment, claim, side in _claims():
        verdicts = [_verdict(tables.get(name), claim.text) for tables in ours.values()]
        line = [experiment.where, claim.sentence, paper_side.text(side), *verdicts, _minutes(ours, name)]
        out.append([*line, f"make reproduce-{name}"])
    return out


def _verdict(table: Mapping[str, Any] | None, claim: str) -> str:
    """Ours of a claim; "not run" too where the table was made before the claim was written."""
    found = table["claims"] if table else []
    return next((str(c["verdict"]) for c in found if c["holds"] == claim), NOT_RUN)


def _minutes(ours: Mapping[str, Tables], name: str) -> str:
    """What the table's runs took together, by profile, one after another."""
    took = {profile: tables[name]["minutes"] for profile, tables in ours.items() if name in tables}
    return "; ".join(f"{profile} {minutes:.0f}" for profile, minutes in took.items() if minutes is not None) or "-"


INTRO = """# The paper's claims

Made by `make status` from `outputs/reference/`.

- *Paper*: its numbers, their difference over its standard error at correlations of 0 and 0.5 between rows, and what
  that says. *SE derived*: the paper prints none, so the binomial one stands for it.
- *Ours*: by profile, tested across runs. With one run a row, a claim about training is not tested.
- *Minutes*: of all runs behind the table, one after another.

"""


def page(ours: Mapping[str, Tables]) -> str:
    """docs/status.md."""
    return INTRO + _never_run(ours) + markdown(lines(ours)) + "\n"


def _never_run(ours: Mapping[str, Tables]) -> str:
    """A line on the profiles with cards of which there is no result; empty if there is none."""
    cards = [profile for profile in ours if layers.validate(layers.profile_layers(profile)).machine.gpus]
    never = [profile for profile in cards if not ours[profile]]
    return f"Profiles {', '.join(never)}: rehearsed on CPU, never run on a GPU.\n\n" if never else ""


def summary(ours: Mapping[str, Tables]) -> str:
    """The README's block: how many claims there are, and how they come out by the paper's numbers and by profile."""
    claims = list(_claims())
    own = Counter(side["verdict"] for *_, side in claims)
    out = [f"{len(claims)} claims of the paper; its numbers support {own[SUPPORTED]}, {own[UNDECIDED]} are undecided."]
    for profile, tables in ours.items():
        found = Counter(_verdict(tables.get(n), c.text).partition(" here:")[0] for n, _, c, _ in claims)
        if set(tables) & set(experiments()):
            out.append(f"Ours, {profile}: {', '.join(f'{count} {verdict}' for verdict, count in found.most_common())}.")
    return " ".join([*out, "[Every claim](docs/status.md)."])


def own(ours: Mapping[str, Tables]) -> str:
    """The README's block on the tables that are ours and not the paper's: figure, controls and what was measured.

    Of each the profile that comes last; empty where none has finished. What a sentence says after a semicolon is for
    the table's own page.
    """
    found = {name: (profile, table) for profile, tables in ours.items() for name, table in tables.items()
             if read(name).ours and table.get("says")}  # fmt: skip
    return "\n\n".join(_own(name, *of) for name, of in found.items())


def _own(name: str, profile: str, table: Mapping[str, Any]) -> str:
    figure = REFERENCE.relative_to(ROOT) / profile / name / f"{name}.png"
    first = [sentence.partition(";")[0].rstrip(".") + "." for sentence in table["says"]]
    said = " ".join(line for line in (controls(table["claims"]), *first) if line)
    command = f"make reproduce-{name}" if profile == "cpu" else f"make reproduce-{name} PROFILE={profile}"
    return f"![{read(name).title}]({figure})\n\n`{command}`: {said} [All of it]({figure.with_suffix('.md')})."


def write() -> Path:
    """Write docs/status.md and the README's blocks; SaoError if the README lacks its markers."""
    ours = reference()
    readme = README.read_text(encoding="utf-8")
    for begin, end, block in ((BEGIN, END, summary(ours)), (OURS, OURS_END, own(ours))):
        if readme.count(begin) != 1 or readme.count(end) != 1:
            raise SaoError(f"README.md needs the lines {begin} and {end} once each, where the status goes.")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{block}\n{end}{rest.split(end)[1]}"
    write_atomic(PAGE, page(ours))
    write_atomic(README, readme)
    return PAGE
