"""Published data: fetched once, checked, never half there; a test without them says so. No network but loopback."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import published
import pytest
from published import published_data

from sao_lib.files import read_rows

JUDGED = {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "user_prompt": "long",
          "judgment": "né [[7]]", "score": 7, "turn": 1, "tstamp": 1.5}  # fmt: skip
PICKED = '{"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "turn": 1, "score": 7, ' \
         '"judgment": "né [[7]]", "tstamp": 1.5}\n'  # fmt: skip


class Source:
    """A server of the bodies by path; `cut` sends half of what it announces. `asked` are the paths it was asked for."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = False
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                source.asked.append(self.path)
                body = source.bodies.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write((body or b"")[: len(body or b"") // 2 if source.cut else None])

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make these entries the manifest and give the empty place of the files; nothing lies beside the repository."""

    def lists(**entries: dict[str, Any]) -> Path:
        monkeypatch.setattr(published_data, "manifest", lambda: entries)
        return tmp_path / "place"

    monkeypatch.setenv("SAO_PUBLISHED", str(tmp_path / "place"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(published_data, "BESIDE", tmp_path / "shared" / "data")
    return lists


def entry(url: str, body: bytes, **more: Any) -> dict[str, Any]:
    return {"url": url, "sha256": hashlib.sha256(body).hexdigest(), **more}


def left(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_a_file_is_fetched_once(
    source: Source, listed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source.bodies["/a"] = b"all of it"
    place = listed(**{"folder/a.txt": entry(f"{source.url}/a", b"all of it")})
    assert published_data.main() == 0
    assert (place / "folder/a.txt").read_bytes() == b"all of it"
    assert published_data.main() == 0
    assert source.asked == ["/a"]
    assert "1 of 1 files are at hand; 0 of them were fetched now" in capsys.readouterr().out
    (place / "folder/a.txt").write_bytes(b"all of")
    assert published_data.locate("folder/a.txt") is None
    assert published_data.main() == 0
    assert (place / "folder/a.txt").read_bytes() == b"all of it"


def wrong(source: Source) -> None:
    source.bodies["/a"] = b"another thing"


def cut(source: Source) -> None:
    source.cut = True


def gone(source: Source) -> None:
    source.bodies.clear()


@pytest.mark.parametrize(
    ("happens", "said"), [(wrong, "gave has sha256 "), (cut, "was cut after 4 of 9 bytes"), (gone, "HTTP Error 404")]
)
@pytest.mark.parametrize("more", [{}, {"made_by": "annotations"}], ids=["verbatim", "made"])
def test_what_is_not_the_published_file_is_refused_in_a_sentence(
    source: Source, listed: Callable[..., Path], capsys: pytest.CaptureFixture[str],
    happens: Callable[[Source], None], said: str, more: dict[str, str],
) -> None:  # fmt: skip
    source.bodies["/a"] = b"all of it"
    place = listed(a=entry(f"{source.url}/a", b"all of it", **more))
    happens(source)
    assert published_data.main() == 1
    if more and happens is wrong:
        said = "gave is not what it should be"
    error = capsys.readouterr().err
    assert error.startswith("Error: a was not fetched: ")
    assert said in error
    assert error.count("\n") == 1
    assert left(place) == []


def test_one_file_that_fails_does_not_hold_up_the_others(source: Source, listed: Callable[..., Path]) -> None:
    source.bodies["/b"] = b"b"
    place = listed(a=entry("http://127.0.0.1:9/a", b"a"), b=entry(f"{source.url}/b", b"b"))
    assert published_data.main() == 1
    assert left(place) == ["b"]


def test_a_file_is_made_of_its_sources(source: Source, listed: Callable[..., Path]) -> None:
    source.bodies["/judged"] = (json.dumps(JUDGED) + "\n").encode()
    place = listed(a=entry(f"{source.url}/judged", PICKED.encode(), made_by="judgments"))
    assert published_data.main() == 0
    assert (place / "a").read_text() == PICKED
    assert left(place) == ["a"]


def test_sources_that_came_whole_are_not_fetched_again(source: Source, listed: Callable[..., Path]) -> None:
    row = {"instruction": "i", "output_1": "ab", "output_2": "abc", "generator_1": "r", "annotator": "j"}
    for name in "xy":
        source.bodies[f"/{name}"] = json.dumps([{**row, "generator_2": name, "preference": 1.25}]).encode()
    columns = "model,position,instruction_index,preference,len_1,len_2,generator_1,generator_2,annotator\r\n"
    text = columns + "x,0,0,1.25,2,3,r,x,j\r\ny,0,0,1.25,2,3,r,y,j\r\n"
    place = listed(a=entry(f"{source.url}/*", text.encode(), made_by="lengths", each=["x", "y"]))
    second = source.bodies.pop("/y")
    assert published_data.main() == 1
    assert not (place / "a").exists()
    source.bodies["/y"] = second
    assert published_data.main() == 0
    assert (place / "a").read_bytes() == text.encode()
    assert source.asked == ["/x", "/y", "/y"]
    assert left(place) == ["a"]


def test_files_beside_the_repository_are_used(source: Source, listed: Callable[..., Path], tmp_path: Path) -> None:
    place = listed(
        a=entry(f"{source.url}/a", b"a"),
        b=entry(f"{source.url}/b", b"b"),
        text={"sha256": hashlib.sha256(b"t").hexdigest(), "no_address": "why", "beside": "texts/1.txt"},
    )
    beside = tmp_path / "shared"
    (beside / "data").mkdir(parents=True)
    (beside / "texts").mkdir()
    (beside / "data" / "a").write_bytes(b"a")
    (beside / "data" / "b").write_bytes(b"older b")
    (beside / "texts" / "1.txt").write_bytes(b"t")
    source.bodies["/b"] = b"b"
    assert published_data.main() == 0
    assert source.asked == ["/b"]
    assert [published.path(name) for name in ("a", "b", "text")] == [
        beside / "data" / "a", place / "b", beside / "texts" / "1.txt",
    ]  # fmt: skip


def test_a_stand_in_is_taken_only_without_the_file(source: Source, listed: Callable[..., Path]) -> None:
    place = listed(
        a=entry(f"{source.url}/a", b"a", stand_in="b"),
        b={"sha256": hashlib.sha256(b"b").hexdigest(), "no_address": "it was made by hand"},
    )
    mark = published.needs("the sum", "a", "b")
    assert mark.args == (True,)
    assert mark.kwargs["reason"] == (
        "not tested: the sum; `make published-data` fetches a; b has no public address: it was made by hand"
    )
    place.mkdir()
    (place / "b").write_bytes(b"b")
    assert published.path("a") == place / "b"
    assert published.needs("the sum", "a", "b").args == (False,)
    source.bodies["/a"] = b"a"
    assert published_data.main() == 0
    assert published.path("a") == place / "a"


# The manifest itself


def test_every_address_is_of_one_commit_and_one_file() -> None:
    for name, item in published_data.manifest().items():
        assert len(bytes.fromhex(item["sha256"])) == 32
        assert item["licence"]
        assert ("url" in item) != ("no_address" in item), name
        if "url" in item:
            assert len(bytes.fromhex(item["commit"])) == 20
            owner = item["repo"].split("/", 3)[3]
            assert item["url"].startswith("https://")
            assert f"{owner}/" in item["url"]
            assert item["url"].endswith(f"/{item['commit']}/{item['path']}")
        assert item.get("made_by") in [None, *published_data.RECIPES]
        assert ("*" in item.get("url", "")) == ("each" in item)
        assert item.get("stand_in") in [None, *published_data.manifest()]


REFERENCE = "alpaca_eval/alpaca_eval_gpt4_baseline.json"
COMPACT = "alpaca_eval/annotations_compact.csv"
MODELS = ["NullModel", "gemma-2b-it", "gemma-7b-it"]
FULL = [f"alpaca_eval/annotations_full/{model}.jsonl" for model in MODELS]
JUDGMENTS = "mt_bench/model_judgment/gpt-4_single_llama-3-8b-instruct.jsonl"


@published.needs("that published files are made as they were made", REFERENCE, COMPACT, JUDGMENTS, *FULL)
def test_recipes_make_the_published_files_of_sources_in_their_own_form(tmp_path: Path) -> None:
    """What a recipe leaves out is put back, as its source has it, and the recipe gives the file at hand again."""
    reference = {row["instruction"]: row["output"] for row in json.loads(published.path(REFERENCE).read_text())}
    sources = {}
    for model, name in zip(MODELS, FULL, strict=True):
        keys = ["instruction", "output_2", "generator_1", "generator_2", "dataset", "annotator", "preference"]
        rows = [
            {**{key: row[key] for key in keys}, "output_1": reference[row["instruction"]], "price_per_example": 0.01}
            for row in read_rows(published.path(name))
        ]
        sources[model] = tmp_path / f"{model}.json"
        sources[model].write_text(json.dumps(rows, indent=2).replace("/", "\\/"))
        assert published_data.annotations({"": sources[model]}) == published.path(name).read_text()
    compact = published.path(COMPACT).read_bytes().decode().splitlines(keepends=True)
    expected = [line for line in compact if line.split(",")[0] in ("model", *MODELS)]
    assert published_data.lengths(sources) == "".join(expected)
    judged = [{**row, "user_prompt": "[Instruction]"} for row in read_rows(published.path(JUDGMENTS))]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    assert published_data.judgments({"": tmp_path / "judged.jsonl"}) == published.path(JUDGMENTS).read_text()
