"""`make fetch`: all that a profile's runs read is fetched by commit, and what cannot be had is named at the end."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sao_lib.engines import models
from sao_lib.errors import SaoError
from sao_lib.launch import fetch
from sao_lib.plan import planning as plan
from sao_lib.plan.needs import models_of


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is fetched, in order; nothing really is."""
    found: list[str] = []

    def noting(*before: str) -> Callable[..., Any]:
        return lambda name, *_: found.append(" ".join([*before, str(name)]))

    monkeypatch.setattr(models, "resolve", noting())
    monkeypatch.setattr(models, "to_fetch_gib", lambda name: 0.0)
    monkeypatch.setattr(fetch, "sources", SimpleNamespace(fetch=noting()))  # planning reads the suite's own files
    monkeypatch.setattr(fetch, "_alpaca_eval", noting("alpaca_eval"))
    monkeypatch.setattr(fetch, "_leaderboard", lambda settings: found.append("lm-eval"))
    monkeypatch.setattr(fetch, "_cache", lambda: tmp_path)
    return found


def test_table_6_of_the_paper_is_fetched_whole_and_once(fetched: list[str]) -> None:
    fetch.fetch("paper", ["table6"])
    made = plan.make("paper", "table6")
    models_needed = {m for run in made.runs[:-1] for m in models_of(run) if not m.startswith("openai/")}
    assert {"google/gemma-2-9b-it", "Qwen/Qwen2-72B-Instruct", "RLHFlow/ArmoRM-Llama3-8B-v0.1"} <= models_needed
    assert models_needed <= set(fetched)
    elsewhere = {f for run in made.runs for f in run.spec["files"] if f.startswith(("hub:", "github:"))}
    assert elsewhere
    assert elsewhere <= set(fetched)
    assert "alpaca_eval df_gamed.csv" in fetched
    assert "lm-eval" not in fetched
    assert len(fetched) == len(set(fetched))


def test_what_libraries_fetch_by_themselves_is_fetched_too(fetched: list[str]) -> None:
    fetch.fetch("gpu", ["table3"])
    assert "lm-eval" in fetched


def test_a_profile_of_embedded_models_needs_nothing(fetched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fetch.fetch("cpu", ["table6"])
    assert fetched == []
    assert "0 models, 0 files" in capsys.readouterr().out


def test_what_cannot_be_had_is_named_after_the_rest(fetched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(name: str) -> None:
        if "gemma" in name:
            raise SaoError(f"{name} is gated.")
        fetched.append(name)

    monkeypatch.setattr(models, "resolve", resolve)
    with pytest.raises(
        SaoError, match=r"^1 of \d+ could not be fetched; the rest is here\.\ngoogle/gemma-2-9b-it is gated"
    ):
        fetch.fetch("paper", ["table6"])
    assert "Qwen/Qwen2-72B-Instruct" in fetched


def test_a_full_disk_stops_it_before_the_first_file(fetched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "to_fetch_gib", lambda name: 1e6)
    with pytest.raises(SaoError, match="make room or set HF_HOME"):
        fetch.fetch("paper", ["table6"])
    assert fetched == []


def test_only_what_is_not_here_yet_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        SimpleNamespace(file_size=3 * 2**30, will_download=True),
        SimpleNamespace(file_size=2**30, will_download=False),
    ]
    asked: list[Any] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *given, **named: asked.append((given, named)) or files
    )
    assert models.to_fetch_gib("google/gemma-2-2b-it") == 3
    ((repo,), named) = asked[0]
    assert (repo, named["dry_run"]) == ("google/gemma-2-2b-it", True)
    assert len(named["revision"]) == 40
    assert models.to_fetch_gib("embedded/smollm2-135m-instruct") == 0
