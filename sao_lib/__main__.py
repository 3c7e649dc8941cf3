"""`python -m sao_lib COMMAND`: what the Makefile calls."""

import argparse
import sys
from pathlib import Path

from sao_lib.errors import SaoError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sao_lib", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for name, text in (("reproduce", "run what is missing and print the table"), ("plan", "show the runs, start none")):
        command = commands.add_parser(name, help=text)
        command.add_argument("experiment", help="a table or figure, or all")
        command.add_argument("--profile", default="cpu")
        command.add_argument("--set", nargs="*", default=[], metavar="key.subkey=value", dest="assignments")
        if name == "reproduce":
            command.add_argument("--cluster", default="local", help="local, slurm or kubernetes")
            command.add_argument("--fresh", default="", help="stale: make again what other code made; all: everything")
    run = commands.add_parser("run", help="execute planned runs, one after another in one process (used by snakemake)")
    run.add_argument("folders", type=Path, nargs="+")
    run.add_argument("--plan", type=Path, help="the plan that they belong to")
    page = commands.add_parser("report", help="one HTML page with every finished table and figure")
    page.add_argument("--profile", default="cpu")
    commands.add_parser("status", help="write docs/status.md and the README's count of claims from outputs/reference")
    lessons = commands.add_parser("notebooks", help="write outputs of a lesson run into notebooks whose code changed")
    lessons.add_argument("names", nargs="*", help="these, whatever changed")
    commands.add_parser("lesson-rows", help="keep of finished runs what lessons start from")
    commands.add_parser("lab", help="open the notebooks in JupyterLab")
    commands.add_parser("unpack", help="convert the models that come in packages (used by make setup)")
    commands.add_parser("doctor", help="what this machine has and what each profile needs")
    return top


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        if given.command == "doctor":
            from sao_lib.launch.doctor import doctor

            doctor()
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

            lesson_rows.write()
        elif given.command == "lab":
            from sao_lib.launch.lab import lab

            lab()
        elif given.command == "run":
            from sao_lib.launch.graph import do_group

            do_group(given.folders, given.plan)
        else:
            from sao_lib.launch.reproduce import reproduce
            from sao_lib.plan.cost import show_plan
            from sao_lib.plan.experiment import experiments
            from sao_lib.report.check import check

            names = experiments() if given.experiment == "all" else [given.experiment]
            if given.command == "reproduce":
                reproduce(given.profile, names, given.assignments, given.cluster, given.fresh)
            else:
                for name in names:
                    check(name)
                show_plan(given.profile, names, given.assignments)
    except SaoError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `make plan-all | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("Stopped; run the same command to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
