"""What the documents say can be done: commands exist, links lead somewhere, nothing names one machine."""

import re
import subprocess

import pytest
import yaml

from sao_lib.settings import ROOT

README = (ROOT / "README.md").read_text()
PAGES = README + "".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z][a-z0-9-]+)", PAGES))))
def test_every_make_command_in_the_documents_exists(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path",
    sorted(
        set(re.findall(r"`((?:params|benchmarks|notebooks|sao_lib|tests)/[\w./]+)`", PAGES))
        | set(re.findall(r"\]\((?!https?:)([\w./-]+)\)", README))
    ),
)
def test_every_file_the_documents_name_exists(path: str) -> None:
    assert (ROOT / path).exists() or path == "params/experiments/mine.yaml" or path == "sao_lib/evaluate/mine.py"


def test_the_readmes_tree_has_a_phrase_for_every_file_of_the_library() -> None:
    tree = README.split("\nsao_lib/\n")[1].split("\noutputs/")[0]
    folder, named = "", set()
    for line in tree.splitlines():
        place, phrase = line.split(None, 1)
        assert phrase
        if place.endswith("/"):
            folder = place
        else:
            named.add((folder if line.startswith("    ") else "") + place)
    library = ROOT / "sao_lib"
    files = {path.relative_to(library).as_posix() for path in library.rglob("*.py") if not path.name.startswith("__")}
    assert named == files


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.split()) <= 1600


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


def test_conda_makes_the_environment_of_the_lock_and_make_uses_it() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert pip == ["-r requirements-gpu.lock", "-e ."]
    assert (ROOT / "requirements-gpu.lock").is_file()
    given = ["make", "--no-print-directory", "-n", "reproduce-table6", "PROFILE=paper", "VENV=active"]
    said = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.startswith("python -m sao_lib reproduce")
    assert "install.sh" not in said


def test_containers_are_told_to_share_memory() -> None:
    commands = re.findall(r"podman run [^\n]*", (ROOT / "Containerfile").read_text())
    assert commands
    assert all("--ipc=host" in command for command in commands)
