"""One row of an experiment -> its runs, from personas to scores, each after what it reads.

A run's identity is the hash of the parameters its stage uses, of the files those name and of the runs it
reads, so that two rows, or two tables, that need the same run share it.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sao_lib import hub
from sao_lib.errors import SaoError, short
from sao_lib.evaluate.instruments import simple_parts
from sao_lib.files import digest, file_digest
from sao_lib.method.feedback import SOURCES
from sao_lib.method.readings import BY_EMBEDDINGS
from sao_lib.method.synthesize import PROMPT_SOURCES
from sao_lib.plan import own_files
from sao_lib.runs import OUTPUTS, identity, load
from sao_lib.settings import MOST, ROOT, Answer, Evaluate, Settings

LABELLED = "params/data/labelled_answers.jsonl"
SEED_STRIDE = MOST  # between replicates; iterations count on from each by one
ECHOES = "params/data/echoes.jsonl"


@dataclass(frozen=True)
class Planned:
    """A run to be: `folder` is relative to outputs/, `inputs` maps a role to another run's folder."""

    folder: str
    spec: dict[str, Any]

    @property
    def path(self) -> Path:
        return OUTPUTS / self.folder

    @property
    def inputs(self) -> dict[str, str]:
        return dict(self.spec["inputs"])

    @property
    def done(self) -> bool:
        """Whether it has finished and is still as it was made; what is damaged is done again."""
        try:
            return load(self.path) is not None
        except SaoError:
            return False


@dataclass(frozen=True)
class Row:
    """One row of an experiment: its settings, what it needs of them, and the runs that this comes to.

    `stages` are those whose results the table reads. `trained: false` is the policy as it comes. `published` names a
    model of a published leaderboard, for rows that run nothing. `skipped` says why a row cannot run here. `runs` are
    all it needs by folder, in order; `roles` the ones that the table reads, by stage.
    """

    name: str
    label: str
    settings: Settings
    stages: tuple[str, ...] = ("evaluate",)
    trained: bool = True
    iterations: int = 1
    published: str | None = None
    skipped: str | None = None
    runs: dict[str, Planned] = field(default_factory=dict)
    roles: dict[str, Planned] = field(default_factory=dict)


def replicate_role(role: str, number: int) -> str:
    """A role in a row's replicate: `evaluate` in the first, `evaluate#2` in the second."""
    return role if number == 1 else f"{role}#{number}"


def built(profile: str, row: Row, base: Settings) -> Row:
    """The row with its runs, once for each replicate: a seed of its own for prompts, responses, coins and data order.

    The evaluation's instructions, seeds and calibration are shared by all. The first replicate has the profile's seed,
    so it is the run of a row without replicates. An untrained row has one.
    """
    runs: dict[str, Planned] = {}
    roles: dict[str, Planned] = {}
    count = row.settings.replicates if row.trained else 1
    for number in range(1, count + 1):
        seed = row.settings.seed + SEED_STRIDE * (number - 1)
        own = replace(row, settings=row.settings.model_copy(update={"seed": seed}))
        chain = Chain(profile, own, base).build()
        runs |= chain.runs
        roles |= {replicate_role(role, number): run for role, run in chain.roles.items()}
    return replace(row, runs=runs, roles=roles)


def spec_of(
    profile: str, stage: str, name: str, params: dict[str, Any], inputs: dict[str, str], files: list[str | None]
) -> dict[str, Any]:
    """A run's spec with digests of the files it reads (a fetched one's is its name's); SaoError if one is none."""
    named = sorted({f for f in files if f})
    for file in named:
        if problem := own_files.no_file(file, stage):
            raise SaoError(f"{short(file)}, named in the parameters of {stage} '{name}', {problem}.")
    digests = {f: digest(f) if f.startswith(hub.ELSEWHERE) else _digest(ROOT / f) for f in named}
    return {"stage": stage, "name": name, "profile": profile, "params": params, "inputs": inputs, "files": digests}


def _digest(path: Path) -> str:
    if path.is_file():
        return file_digest(path)
    return digest({p.name: file_digest(p) for p in sorted(path.iterdir()) if p.is_file()})


@dataclass
class Chain:
    """Builds the runs of `row`; `base` are the experiment's settings before the row changed them.

    After `build`, `runs` holds all of them in order and `roles` the ones a table reads.
    """

    profile: str
    row: Row
    base: Settings
    runs: dict[str, Planned] = field(default_factory=dict)
    roles: dict[str, Planned] = field(default_factory=dict)

    def build(self) -> "Chain":
        if self.row.published or not self.row.stages:
            return self
        trained = self._trained(set(self.row.stages)) if self.row.trained else None
        policy = {"policy": trained.folder} if trained else {}
        for stage in self.row.stages:
            if stage not in ("synthesize", "judge", "train"):
                self.roles[stage] = getattr(self, f"_{stage}")(policy)
        return self

    def _add(
        self, stage: str, name: str, params: dict[str, Any], inputs: dict[str, str], files: list[str | None]
    ) -> Planned:
        spec = spec_of(self.profile, stage, name, params, inputs, files)
        run = Planned(f"{self.profile}/{stage}/{name}-{identity(spec)[:8]}", spec)
        return self.runs.setdefault(run.folder, run)

    @property
    def _model(self) -> dict[str, Any]:
        s = self.row.settings
        return {"policy": s.policy.model_dump(), "engine": s.engine.model_dump()}

    def _trained(self, wanted: set[str]) -> Planned | None:
        """Synthesize, judge and train, as often as the row iterates; no further than the row needs."""
        s, trained = self.row.settings, None
        replicate = f"-seed-{s.seed}" if s.seed != self.base.seed else ""
        if s.train.data:
            return self._train(None, {}, replicate)
        for iteration in range(self.row.iterations):
            policy: dict[str, str] = {"policy": trained.folder} if trained else {}
            suffix = (f"-iteration-{iteration + 1}" if iteration else "") + replicate
            self.roles["synthesize"] = synthesized = self._synthesize(s.seed + iteration, policy, suffix)
            if wanted <= {"synthesize"}:
                return None
            self.roles["judge"] = judged = self._judge(synthesized, policy, suffix)
            if wanted <= {"synthesize", "judge", "rating"}:
                return None
            trained = self._train(judged, policy, suffix)
        return trained

    def _variant(self) -> str:
        """What a run's readable name says beyond its own stage: another policy, generator or prompt source."""
        s = self.row.settings
        parts = [hub.short(s.policy.model)] if s.policy.model != self.base.policy.model else []
        parts += [name] if (name := PROMPT_SOURCES[s.synthesize.source].folder_name) else []
        parts += [f"answers-by-{hub.short(s.synthesize.generator.model)}"] if s.synthesize.generator else []
        return "".join(f"-{part}" for part in parts)

    def _synthesize(self, seed: int, policy: dict[str, str], suffix: str) -> Planned:
        s = self.row.settings.synthesize
        files = [*PROMPT_SOURCES[s.source].files(s), self.row.settings.policy.chat_template]
        own = s.model_copy(update={"generator": None})
        name = f"policy{self._variant().partition('-answers-by')[0]}{suffix}"
        params = {"seed": seed, **self._model, "synthesize": own.model_dump()}
        prompts = self._add("synthesize", name, params, policy, files)
        if not s.generator:
            return prompts
        params = {**params, "synthesize": s.model_dump()}
        inputs = {**policy, "prompts": prompts.folder}
        return self._add("synthesize", f"policy{self._variant()}{suffix}", params, inputs, [s.generator.chat_template])

    def _judge(self, synthesized: Planned, policy: dict[str, str], suffix: str) -> Planned:
        s, source = self.row.settings, SOURCES[self.row.settings.judge.source]
        llm, judging = source.opens == "engine", s.judge.model_dump(include=set(source.reads))
        params = {"seed": s.seed, "policy": s.policy.model_dump() if llm else None, "judge": judging,
                  "engine": (s.judge.engine or s.engine).model_dump() if llm else None}  # fmt: skip
        inputs = {"synthesize": synthesized.folder, **(policy if llm and not s.judge.model else {})}
        files = [LABELLED, *((s.judge.template, s.judge.chat_template) if llm else ())]
        return self._add(
            "judge", f"{SOURCES[s.judge.source].folder_name(s.judge)}{self._variant()}{suffix}", params, inputs, files
        )

    def _train(self, judged: Planned | None, policy: dict[str, str], suffix: str = "") -> Planned:
        s = self.row.settings
        source = SOURCES[s.judge.source].folder_name(s.judge) if judged else "external"
        size = f"-{s.train.pairs}-pairs" if s.train.pairs else ""
        params = {"seed": s.seed, "policy": s.policy.model_dump(), "train": s.train.model_dump()}
        inputs = {**policy, **({"judge": judged.folder} if judged else {})}
        files = [s.train.deepspeed, s.train.data, s.policy.chat_template]
        name = f"{s.train.loss}-{source}{size}{self._variant()}{suffix}"
        self.roles["train"] = trained = self._add("train", name, params, inputs, files)
        return trained

    def _subject(self, policy: dict[str, str]) -> str:
        """The readable name of the model that is evaluated."""
        if policy:
            return policy["policy"].rsplit("/", 1)[-1].rpartition("-")[0]
        return f"untrained{self._variant()}"

    def _answer(self, name: str, evaluate: Evaluate, model: dict[str, Any], policy: dict[str, str]) -> Planned:
        """A model's answers to the benchmark's instructions; every judge reads the same."""
        params = {"seed": self.base.seed, **model, "evaluate": evaluate.model_dump(include=set(Answer.model_fields))}
        files = [evaluate.instructions, model["policy"]["chat_template"], LABELLED]
        return self._add("answer", name, params, policy, files)

    def _scored(self, name: str, evaluate: Evaluate, model: dict[str, Any], inputs: dict[str, str]) -> Planned:
        files = [evaluate.instructions, evaluate.judge_template, evaluate.judge_chat_template]
        files += [] if evaluate.judge_model else [model["policy"]["chat_template"]]
        files += [] if "calibration" in inputs else [LABELLED, ECHOES]
        files += [evaluate.answers] if evaluate.answers else []
        asked = evaluate.model_dump(exclude=None if evaluate.second else {"second"})  # without one, as it always was
        params = {"seed": self.base.seed, **model, "evaluate": asked}
        return self._add("evaluate", f"{name}{by(evaluate, self.base)}", params, inputs, files)

    def _calibration(self, evaluate: Evaluate) -> Planned:
        """The untrained default policy under this judge: the run that chooses and measures its instrument."""
        model = {"policy": self.base.policy.model_dump(), "engine": self.base.engine.model_dump()}
        answers = self._answer("untrained", evaluate, model, {})
        return self._scored("untrained", evaluate, model, {"answers": answers.folder})

    def _one_judge(self, evaluate: Evaluate) -> Evaluate:
        """The judge that the calibration measured, named where the row's own policy would else be asked."""
        names = [*evaluate.judges, *([evaluate.second] if evaluate.second else [])]
        own = self.base.policy
        if evaluate.judge_model or self.row.settings.policy == own or set(simple_parts(names)) <= set(BY_EMBEDDINGS):
            return evaluate
        return evaluate.model_copy(update={"judge_model": own.model, "judge_chat_template": own.chat_template})

    def _evaluate(self, policy: dict[str, str]) -> Planned:
        evaluate = self.row.settings.evaluate
        if evaluate.answers:  # of a model that does not run here
            judge = evaluate.model_copy(update={"answers": None})
            inputs = {"calibration": self._calibration(judge).folder}
            return self._scored(f"answers-of-{Path(evaluate.answers).parent.name}", evaluate, self._model, inputs)
        calibration = self._calibration(evaluate)
        evaluate = self._one_judge(evaluate)
        if not policy and self.row.settings.policy == self.base.policy:
            return calibration
        subject = self._subject(policy)
        answers = self._answer(subject, evaluate, self._model, policy)
        inputs = {"answers": answers.folder, "calibration": calibration.folder}
        return self._scored(subject, evaluate, self._model, inputs)

    def _chat_benchmarks(self, policy: dict[str, str]) -> Planned:
        s = self.row.settings
        params = {"seed": self.base.seed, **self._model, "chat_benchmarks": s.chat_benchmarks.model_dump(),
                  "evaluate": self._one_judge(s.evaluate).model_dump(exclude={"second"})}  # fmt: skip
        b = s.chat_benchmarks
        files = [
            LABELLED,
            b.mt_bench,
            b.arena_hard,
            b.arena_baseline,
            b.mt_bench_template,
            b.arena_hard_template,
            s.evaluate.judge_template,
            s.evaluate.judge_chat_template,
            s.policy.chat_template,
        ]
        inputs = {**policy, "calibration": self._calibration(s.evaluate).folder}
        return self._add("chat_benchmarks", self._subject(policy), params, inputs, files)

    def _leaderboard(self, policy: dict[str, str]) -> Planned:
        s = self.row.settings
        params = {"policy": s.policy.model_dump(), "leaderboard": s.leaderboard.model_dump()}
        return self._add("leaderboard", self._subject(policy), params, policy, [s.leaderboard.data])

    def _math500(self, policy: dict[str, str]) -> Planned:
        s = self.row.settings
        params = {"seed": self.base.seed, **self._model, "math500": s.math500.model_dump()}
        files = [s.math500.problems, s.math500.template, s.policy.chat_template]
        return self._add("math500", self._subject(policy), params, policy, files)

    def _logits(self, policy: dict[str, str]) -> Planned:
        s = self.row.settings
        params = {"seed": self.base.seed, **self._model, "logits": s.logits.model_dump()}
        return self._add("logits", self._subject(policy), params, policy, [s.logits.chat, s.logits.math])

    def _rating(self, policy: dict[str, str]) -> Planned:
        s = self.row.settings
        if "judge" not in self.roles:
            raise SaoError("Stage rating grades the responses that a feedback source chose, and this row has none.")
        params = {"seed": self.base.seed, **self._model, "rating": s.rating.model_dump()}
        judged = self.roles["judge"]
        return self._add("rating", judged.spec["name"], params, {"judge": judged.folder}, [s.rating.template, LABELLED])


def by(evaluate: Evaluate, base: Settings) -> str:
    """The part of a readable name that says another evaluation judge reads the answers."""
    if evaluate == base.evaluate:
        return ""
    if all(part in BY_EMBEDDINGS for part in simple_parts(evaluate.judges)):
        return "-by-relevance"
    return f"-by-{hub.short(evaluate.judge_model) if evaluate.judge_model else 'policy'}"
