"""What the documents say can be done: commands exist, links lead somewhere, nothing names one machine."""

import re
import subprocess

import pytest

from sao_lib.settings import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z][a-z0-9-]+)", README))))
def test_every_make_command_in_the_readme_exists(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:params|benchmarks|notebooks|sao_lib)/[\w./]+)`", README)))
)
def test_every_file_the_readme_names_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_help_lists_every_target() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^([a-z][a-z%-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE):
        assert target.replace("%", "TABLE") in said


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    found = subprocess.run(
        ["git", "grep", "-nE", r"/(home|Users|root)/\w", "--", ".", ":!tests/test_docs.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout == ""
