"""Started by test_engines: a copy of vLLM with processes of its own, as on GPUs; what it gives, and who is below."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from sao_lib.engines import Conversation, Engine
from sao_lib.engines.models import resolve
from sao_lib.settings import Engine as Settings

SETTINGS = Settings(kind="vllm", dtype="float32", max_model_len=512, max_num_seqs=8, kv_cache_tokens=8192)
REQUESTS = [Conversation(({"role": "user", "content": text},)) for text in ("Name three fruits.", "Why? " * 600)]


def values(engine: Engine) -> dict[str, Any]:
    """What every call gives for a request, and for one that is too long."""
    written = engine.generate(REQUESTS, 8, 0.0, [0, 0])
    return {
        "texts": [[c.text, c.tokens_in, c.reason] for c in written],
        "labels": [list(one) for one in engine.label_logprobs(REQUESTS[:1], (" A", " B"))],
        "logps": engine.completion_logprobs(REQUESTS[:1], ["Apples and pears."]),
    }


def main(name: str, folder: Path, then: str) -> None:
    import psutil

    from sao_lib.engines.replicas import Replicas

    engine = Replicas(resolve(name), SETTINGS, folder / "log", None)
    found = values(engine)
    drawn = [[c.text for c in engine.generate(REQUESTS[:1], 8, 0.9, [seed])] for seed in (1, 1, 2)]
    assert engine.reload(resolve(name), SETTINGS, folder / "log", None)
    (folder / "values.json").write_text(json.dumps({**found, "drawn": drawn, "again": values(engine)}))
    below = psutil.Process().children(recursive=True)
    assert any("EngineCore" in p.name() or "EngineCore" in " ".join(p.cmdline()) for p in below), below
    (folder / "pids").write_text(" ".join(str(p.pid) for p in below if len(p.parents()) > 0))
    if then == "wait":
        time.sleep(600)
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
