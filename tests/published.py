"""Published data in tests: which test needs which files, and what it says without them. See tools/published_data.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import published_data  # noqa: E402


def path(name: str) -> Path:
    """Where a file of tests/published.json lies, or what stands in for it; only for tests that `needs` it."""
    found = published_data.locate(name)
    assert found, f"a test reads {name} without needing it"
    return found


def needs(what: str, *names: str) -> pytest.MarkDecorator:
    """Skip a test unless all files are at hand; the reason says what is then not tested, and how to get them."""
    entries = {name: published_data.manifest()[name] for name in names if not published_data.locate(name)}
    fetched = [name for name, entry in entries.items() if "url" in entry]
    why = [f"{name} has no public address: {e['no_address']}" for name, e in entries.items() if "url" not in e]
    if fetched:
        why.insert(0, f"`make published-data` fetches {', '.join(fetched)}")
    return pytest.mark.skipif(bool(entries), reason=f"not tested: {what}; {'; '.join(why)}")
