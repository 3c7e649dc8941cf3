"""What parameters there are, typed and strict. `layers` merges and validates them.

Nothing of ours is imported here.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

ROOT = Path(__file__).resolve().parents[1]
PARAMS = ROOT / "params"
Stage = Literal[
    "synthesize", "judge", "train", "answer", "evaluate", "ablate",
    "logits", "chat_benchmarks", "leaderboard", "math500", "rating",
]  # fmt: skip
NOTEBOOKS: dict[str, str] = {
    "synthesize": "01_synthesize",
    "judge": "02_judge",
    "train": "03_train",
    "answer": "04_answer",
    "evaluate": "04_evaluate",
    "ablate": "05_ablate",
    "logits": "06_logits_skew",
    "chat_benchmarks": "07_chat_benchmarks",
    "leaderboard": "08_leaderboard",
    "math500": "09_math500",
    "rating": "10_rating",
}


MOST = 100  # replicates of a row, and iterations of one: chain.SEED_STRIDE keeps their seeds apart
# Of a parameter that came when results were there: at its default it is not written down.
LATER: JsonDict = {"later": True}

Reading = Literal[
    "likelihood", "reverse", "reverse_added", "relevance", "relevance_added", "relevance_new", "added_new"
]  # method.readings


def notebook_of(spec: dict[str, Any]) -> str:
    """The notebook that a run is executed by: its stage's, or for a table the one that its experiment names."""
    return str(spec.get("params", {}).get("notebook") or NOTEBOOKS[spec["stage"]])


class Strict(BaseModel):
    """Unknown keys are refused. A dump leaves out a LATER parameter at its default, so no identity changes by it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which would count as 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        options = [annotation, *get_args(annotation)]
        options += [choice for option in options for choice in get_args(option)]  # a Literal's, a list's
        if isinstance(value, bool) and any(kind in (int, float) or type(kind) is int for kind in options):
            raise PydanticCustomError("number", "it must be a number")
        return value

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Any) -> dict[str, Any]:
        fields = type(self).model_fields
        return {k: v for k, v in dump(self).items() if fields[k].json_schema_extra != LATER or v != fields[k].default}


class StageNeed(Strict):
    """Where one stage differs from the rest of the machine section; null: it does not."""

    gpus: int | None = Field(default=None, ge=0)
    memory_gib: float | None = Field(default=None, gt=0)
    minutes: int | None = Field(default=None, ge=1)
    cpus: int | None = Field(default=None, ge=1)
    group: int | None = Field(default=None, ge=1)


class Machine(Strict):
    """What one job of this profile uses; not part of a run's identity. Only clusters read minutes, cpus and stages."""

    gpus: int = Field(ge=0)
    memory_gib: float = Field(gt=0)
    card_gib: float = Field(default=0, ge=0, description="memory that a card must have")
    jobs: int | None = Field(default=None, ge=1, description="jobs at once; null: as the machine allows")
    minutes: int = Field(default=60, ge=1)
    pending_minutes: int = Field(default=1440, ge=1, description="that a pod may wait for a node")
    cpus: int = Field(default=1, ge=1)
    group: int = Field(default=8, ge=1, description="runs of one stage and model that one job does in turn, at most")
    stages: dict[Stage, StageNeed] = {}


class Policy(Strict):
    model: str
    system: str | None = None
    chat_template: str | None = None


class Engine(Strict):
    kind: Literal["vllm", "transformers", "openai"]
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: int = Field(default=4096, ge=64)
    max_num_seqs: int = Field(default=64, ge=1)
    tensor_parallel: int = Field(default=1, ge=1, description="GPUs that share one copy of the model")
    data_parallel: int = Field(default=1, ge=1, description="copies of the model, each with its share of the requests")
    prefix_caching: bool = Field(default=True, description="requests that begin alike compute their beginning once")
    threads: int = Field(default=1, ge=1)
    kv_cache_tokens: int = Field(default=32768, ge=1024, description="on CPU; a GPU gives what it has")
    max_usd: float = Field(default=0, ge=0)
    api_workers: int = Field(default=8, ge=1, description="calls of an API at once", json_schema_extra=LATER)
    options: dict[str, Any] = Field(
        default={}, description="more of vLLM's own, such as kv_cache_dtype; over ours", json_schema_extra=LATER
    )

    @model_validator(mode="after")
    def _parallel(self) -> "Engine":
        if self.options and self.kind != "vllm":
            raise ValueError(f"options are vLLM's; engine kind {self.kind} knows none")
        if self.kind != "vllm" and self.tensor_parallel * self.data_parallel > 1:
            raise ValueError(f"tensor_parallel and data_parallel are vLLM's; engine kind {self.kind} has one copy")
        return self


class Synthesize(Strict):
    """`generator: null` is the policy itself; another model answers the policy's prompts (SAO table 8)."""

    source: str = Field(default="persona", description="a name in method.synthesize.PROMPT_SOURCES")
    personas: str
    dataset: str = Field(description="prompts of an external preference set, for source `dataset`")
    n: int = Field(ge=2)
    pairs: int | None = Field(default=None, ge=2, description="usable prompts that are answered; null: all")
    generator: Policy | None = None
    template: str
    temperature: float = Field(ge=0)
    max_prompt_tokens: int = Field(ge=8)
    max_response_tokens: int = Field(ge=8)
    sentences: int | None = Field(default=None, ge=1, description="a response ends after so many; null: where it ends")
    filter: Literal["drop", "log"] = Field(default="drop", description="prompts with a fault: left out, or noted only")
    max_words: int = Field(default=150, ge=5, description="a longer prompt has a fault")
    chunk: int = Field(ge=1)


class Judge(Strict):
    """A feedback source. `model: null` is the policy itself."""

    source: str = Field(description="a name in method.feedback.SOURCES")
    model: str | None = None
    engine: Engine | None = None
    chat_template: str | None = None
    template: str = "params/templates/ranking.yaml"
    reading: Literal["text", "logprob", "likelihood", "reverse", "reverse_added"] = Field(
        default="text", description="a ranking in words or from log-odds, or each response by itself (method.readings)"
    )
    orders: Literal["one", "both"] = Field(default="one", description="of a ranking")
    without_criterion: Literal[1, 2, 3, 4] | None = None
    max_tokens: int = Field(default=512, ge=1, description="of a verdict in text")
    audit_questions: int = Field(default=8, ge=1)
    audit_faults: int = Field(default=3, ge=1, description="of a labelled question's faults, taken in turn")
    chunk: int = Field(default=64, ge=1)
    salt: int = Field(default=0, ge=0, description="of source `random`: another coin for the same pairs")
    corrupted: float = Field(default=0, ge=0, le=1, description="of source `gold`: share of verdicts that are turned")


class Train(Strict):
    data: str | None = Field(default=None, description="an external preference set instead of a judge's")
    pairs: int | None = Field(default=None, ge=1, description="exactly so many are trained on; null: all there are")
    loss: str = Field(description="an entry of sao_lib.method.losses.LOSSES")
    beta: float = Field(gt=0)
    gamma: float = Field(default=0, ge=0)
    learning_rate: float = Field(gt=0)
    epochs: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    warmup: float = Field(ge=0, lt=1)
    max_length: int = Field(ge=64)
    min_completion: int = Field(ge=1)
    held_out: int = Field(ge=0)
    samples: int = Field(default=4, ge=1)
    sample_tokens: int = Field(default=256, ge=8)
    sample_every: int | None = Field(default=None, ge=1, description="steps; null: before and after only")
    processes: int = Field(ge=1)
    threads: int = Field(default=1, ge=1)
    deepspeed: str | None = None
    attention: Literal["flash_attention_2", "sdpa", "eager"] = "sdpa"
    lora_rank: int | None = Field(default=None, ge=1, description="null: all weights are trained")
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="of products, over weights in float32", json_schema_extra=LATER
    )
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = False
    save_steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _splits(self) -> "Train":
        share = self.micro_batch * self.processes
        if self.global_batch % share:
            raise ValueError(
                f"global_batch {self.global_batch} cannot be split over {self.processes} process(es) of "
                f"micro_batch {self.micro_batch}: it must be a multiple of {share}"
            )
        return self

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps: global batch / (micro batch x processes)."""
        return self.global_batch // (self.micro_batch * self.processes)


class Answer(Strict):
    """The benchmark's instructions and how they are answered (SAO 4.2)."""

    instructions: str
    n: int = Field(ge=4)
    reference: str = Field(description="generator of the answers in the instruction file")
    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=8)
    chunk: int = Field(ge=1)
    gold_questions: int = Field(default=50, ge=0, description="labelled questions that the policy itself is scored on")


class Evaluate(Answer):
    """The answers' judge and what is made of its verdicts.

    `answers` is a file in alpaca_eval's format with the answers of a model that does not run here. `second` is a
    reading of another kind than the judge's, whose opinion of the same answers is kept beside: what a policy gains by
    the measure that labelled its data need not be a gain by another.
    """

    answers: str | None = None
    judge_model: str | None = None
    judge_engine: Engine | None = None
    judge_chat_template: str | None = Field(default=None, description="of judge_model")
    judge_template: str = Field(
        default="params/templates/ranking_small.yaml", description="of the instrument `ranking`"
    )
    judges: list[str] = Field(min_length=1)
    second: Reading | None = Field(default=None, description="null: no second opinion")
    verdict: Literal["discrete", "weighted"] = "discrete"
    labelled_questions: int = Field(ge=0)
    length_term: Literal["alpaca_eval"] | None = Field(
        default=None, description="the official length-controlled win rate; null: none is printed"
    )

    @model_validator(mode="after")
    def _weighted(self) -> "Evaluate":
        if self.verdict == "weighted" and self.judges != ["alpaca_eval"]:
            raise ValueError("verdict: weighted needs judges: [alpaca_eval], whose margins are log-odds")
        return self


class ChatBenchmarks(Strict):
    """MT-Bench and Arena-Hard, judged by the evaluation judge (SAO table 2).

    A template is a file of ours or one in the benchmark's own format: FastChat's judge_prompts.jsonl, Arena-Hard's
    judge_config.yaml. Limits are tokens of an answer and of a judgment; a game without a verdict is asked about
    `arena_hard_attempts` times in all.
    """

    mt_bench: str
    mt_bench_n: int = Field(ge=1)
    mt_bench_template: str = "params/templates/mt_bench.yaml"
    arena_hard: str
    arena_hard_n: int = Field(ge=1)
    arena_baseline: str | None = Field(default=None, description="file of baseline answers; null: in the questions")
    arena_hard_template: str = "params/templates/arena_hard.yaml"
    reading: Literal["text", "logprob"] = "text"
    mt_bench_tokens: int = Field(ge=8)
    mt_bench_judge_tokens: int = Field(default=2048, ge=8)
    arena_hard_tokens: int = Field(ge=8)
    arena_hard_judge_tokens: int = Field(default=4096, ge=8)
    arena_hard_attempts: int = Field(default=2, ge=1)
    chunk: int = Field(default=32, ge=1, description="questions between two saves", json_schema_extra=LATER)


class Leaderboard(Strict):
    """Open LLM Leaderboard v1 by lm-eval (SAO table 3). `data: null` is the official sets from the hub."""

    data: str | None
    limit: int | None = Field(default=None, ge=1)
    batch_size: int | Literal["auto"] = Field(description="of answers that are written; auto: as many as fit")
    max_gen_toks: int = Field(ge=8)
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    threads: int = Field(default=1, ge=1)


class Math(Strict):
    """MATH-500 (SAO table 11)."""

    problems: str
    n: int = Field(ge=1)
    template: str = "params/templates/math.yaml"
    max_tokens: int = Field(ge=8)
    temperature: float = Field(ge=0)
    chunk: int = Field(default=32, ge=1, description="problems between two saves", json_schema_extra=LATER)


class Rating(Strict):
    """Five 0-10 ratings of the responses that each source selected (SAO table 7)."""

    n: int = Field(ge=1)
    model: str | None = None
    engine: Engine | None = None
    template: str = "params/templates/rating.yaml"
    reading: Literal["text", "logprob"] = "text"
    chunk: int = Field(default=32, ge=1, description="responses between two saves", json_schema_extra=LATER)


class Logits(Strict):
    """Distribution of logits over responses (SAO figure 4). `softcap`: Gemma-2's, logits before or after it."""

    chat: str
    math: str
    prompts: int = Field(ge=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    softcap: Literal["before", "after"]
    low: float
    high: float
    bins: int = Field(ge=2)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    threads: int = Field(default=1, ge=1)


class Preset(Strict):
    """What rows of experiments ask for by name and each profile gives in its own way.

    `label` names the stand-in where the profile cannot have the paper's, or which of several it is. `trained` says
    whether a row that uses it is trained here, where that differs from what the row says. With the variable
    `unless_env` in the environment the paper's own is possible: `instead` holds, and `instead_label` where even then
    something stands in.
    """

    label: str | None = None
    trained: StrictBool | None = None
    settings: dict[str, Any]
    unless_env: str | None = None
    instead: dict[str, Any] = {}
    instead_label: str | None = None


class Settings(Strict):
    seed: int = Field(ge=0, lt=2**31, description="libraries take no other")
    replicates: int = Field(default=1, ge=1, le=MOST, description="runs of each trained row, each with its own seed")
    machine: Machine
    policy: Policy
    engine: Engine
    synthesize: Synthesize
    judge: Judge
    train: Train
    evaluate: Evaluate
    chat_benchmarks: ChatBenchmarks
    leaderboard: Leaderboard
    math500: Math
    rating: Rating
    logits: Logits
    presets: dict[str, Preset] = {}

    @model_validator(mode="after")
    def _cards(self) -> "Settings":
        engines = {
            "engine": self.engine,
            "judge.engine": self.judge.engine,
            "evaluate.judge_engine": self.evaluate.judge_engine,
            "rating.engine": self.rating.engine,
        }
        for name, engine in engines.items():
            need = engine.tensor_parallel * engine.data_parallel if engine else 1
            if self.machine.gpus and need > self.machine.gpus:
                raise ValueError(f"{name} spreads over {need} GPUs, machine.gpus is {self.machine.gpus}")
        if self.machine.gpus and self.train.processes > self.machine.gpus:
            raise ValueError(f"train.processes is {self.train.processes}, machine.gpus is {self.machine.gpus}")
        return self
