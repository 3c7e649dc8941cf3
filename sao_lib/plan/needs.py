"""What a planned run needs to be there: models, and packages that not every system has."""

from sao_lib.plan.chain import Planned


def models_of(run: Planned) -> list[str]:
    """Every model that a run opens: its policy (unless a training makes it), its judge, its generator; a table none."""
    p = {} if run.spec["stage"] == "ablate" else run.spec["params"]
    answered = "policy" in run.inputs or (p.get("evaluate") or {}).get("answers")
    found = [None if answered else (p.get("policy") or {}).get("model")]
    found += [(p.get(section) or {}).get("model") for section in ("judge", "rating")]
    found += [(p.get("evaluate") or {}).get("judge_model")]
    found += [((p.get("synthesize") or {}).get("generator") or {}).get("model")]
    return sorted({str(model) for model in found if model})


def packages_of(run: Planned) -> dict[str, str]:
    """The packages that a run needs and not every system has: module -> what to set to do without it."""
    p = {} if run.spec["stage"] == "ablate" else run.spec["params"]
    sections = [p, *(p.get(section) or {} for section in ("judge", "evaluate", "rating"))]
    engines = [section.get(key) or {} for section in sections for key in ("engine", "judge_engine")]
    needed = {"vllm": "engine.kind=transformers"} if any(e.get("kind") == "vllm" for e in engines) else {}
    return needed | ({"deepspeed": "train.deepspeed=null"} if (p.get("train") or {}).get("deepspeed") else {})
