"""`make report`: one HTML page with every finished table and figure, ours beside the paper's."""

import base64
import html
from pathlib import Path
from typing import Any

from sao_lib.errors import SaoError, visible
from sao_lib.files import write_atomic
from sao_lib.plan.experiment import experiments
from sao_lib.report import paper, status
from sao_lib.report.claims import controls
from sao_lib.report.rows import experiment_of, table_rows
from sao_lib.report.table import caption, claim_lines, claims, formatted
from sao_lib.runs import OUTPUTS, Run, load
from sao_lib.yaml_files import profile_file

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #555; } img { max-width: 100%; } .note { color: #555; font-size: .85rem; }
td { white-space: pre-wrap; max-width: 38rem; } nav a { margin-right: .8rem; }
.control { font-weight: bold; margin-top: 3rem; }
"""


def write_page(profile: str) -> Path:
    """Write outputs/<profile>/report.html from the tables that have finished; SaoError when none has.

    The paper's come first, each followed by what SET made of it; then the suite's own.
    """
    profile_file(profile)
    names = [n for name in experiments(ours=True) for n in (name, *_variants(profile, name))]
    done = {name: run for name in names if (run := load(OUTPUTS / profile / name))}
    if not done:
        raise SaoError(f"No table of profile {profile} has finished; run `make reproduce-all PROFILE={profile}` first.")
    missing = [name for name in experiments() if name not in done]
    checked = {name: claims(run, table_rows(run)) for name, run in done.items()}
    parts = [f"<h1>SAO, reproduced: profile {profile}</h1>"]
    parts += [f"<nav>{''.join(map(_link, done))}</nav>"]
    if missing:
        parts.append(f"<p class=note>Not finished: {', '.join(missing)}.</p>")
    parts += ["<h2 id=status>The paper's claims</h2>", _table(status.lines({profile: _of_the_paper(profile, checked)}))]
    parts += [_section(name, run, checked[name]) for name, run in done.items()]
    parts.append(_disagreements())
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>SAO, reproduced</title><style>{STYLE}</style>"
    path = OUTPUTS / profile / "report.html"
    write_atomic(path, page + "\n".join(parts) + "</html>\n")
    print(f"{len(done)} tables and figures, {len(missing)} of the paper's not finished: {path}")
    return path


def _link(name: str) -> str:
    return f'<a href="#{html.escape(name)}">{html.escape(name)}</a>'


def _of_the_paper(profile: str, checked: dict[str, list[Any]]) -> status.Tables:
    """What the status table reads of a profile, from claims that were checked just now."""
    return {
        name: {"command": f"make reproduce-{name} PROFILE={profile}", "minutes": None, "claims": found}
        for name, found in checked.items()
    }


def _variants(profile: str, name: str) -> list[str]:
    return sorted(path.name for path in (OUTPUTS / profile).glob(f"{name}@*"))


def _section(name: str, run: Run, checked: list[Any]) -> str:
    experiment, rows = experiment_of(run), table_rows(run)
    control = controls(checked)
    parts = [f"<p class=control>{html.escape(control.replace('**', ''))}</p>"] if control else []
    parts += [f'<h2 id="{html.escape(name)}">{html.escape(name)}: {html.escape(experiment.title)}</h2>']
    parts += [f"<p>{html.escape(experiment.question)} ({html.escape(experiment.where)})</p>"]
    picture = run.folder / f"{run.params['experiment']}.png"
    if picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(
            f'<img alt="{html.escape(name)}: {html.escape(experiment.title)}" src="data:image/png;base64,{data}">'
        )
    parts.append(_table(formatted(run, rows)))
    parts += [f"<p class=note>{html.escape(line)}</p>" for line in caption(run, rows).split("\n")]
    return "\n".join(parts + ([_table(claim_lines(checked))] if checked else []))


def _table(table: list[list[str]]) -> str:
    head, *body = table
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(visible(cell))}</td>' for cell in row)}</tr>" for row in body)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"


def _disagreements() -> str:
    """Where the paper's numbers disagree with one another, computed from params/paper.yaml."""
    lines = [["What", "As printed", "Where"]]
    lines += [[d.what, "; ".join(d.values), "; ".join(d.where)] for d in paper.disagreements()]
    text = (
        "Every average and delta in the paper is recomputed from its parts, and cells that report one setting compared."
    )
    return f"<h2 id=disagreements>Where the paper disagrees with itself</h2><p>{text}</p>{_table(lines)}"
