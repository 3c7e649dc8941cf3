"""`make fetch`: the models and data that runs will read, fetched where there is a network and no card waits.

Everything comes by commit into the hub's own cache (HF_HOME), which resumes a file that was cut off; a second call
fetches what is missing and nothing else.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sao_lib import hub, sources
from sao_lib.engines import models
from sao_lib.errors import SaoError, in_one_line
from sao_lib.plan import planning
from sao_lib.plan.chain import Planned
from sao_lib.plan.needs import models_of
from sao_lib.settings import Leaderboard

ALPACA_EVAL = ("df_gamed.csv", "instruction_difficulty.csv")  # what the official length term reads


def fetch(profile: str, experiments: Sequence[str]) -> None:
    """Fetch what the experiments' runs need; raises SaoError, after the rest, naming what cannot be had.

    Raises it before anything is fetched where the disk has no room.
    """
    runs = [run for name in experiments for run in planning.make(profile, name).runs[:-1]]  # the last draws the table
    named = sorted({model for run in runs for model in models_of(run) if hub.MODEL.fullmatch(model)})
    files = sorted({source for run in runs for source in run.spec["files"] if source.startswith(hub.ELSEWHERE)})
    gib = sum(map(models.to_fetch_gib, named))
    cache = _cache()
    free = shutil.disk_usage(cache).free / 2**30
    print(
        f"{len(named)} models, {len(files)} files; {gib:.0f} GiB of weights to fetch into {cache}, {free:.0f} GiB free."
    )
    if gib > free:
        raise SaoError(f"{cache} has {free:.0f} GiB free and {gib:.0f} are to be fetched; make room or set HF_HOME.")
    steps: list[tuple[str, Callable[[], object]]] = [(name, partial(models.resolve, name)) for name in named]
    steps += [(name, partial(sources.fetch, name)) for name in files]
    steps += _of_libraries(runs)
    failed = []
    for number, (name, step) in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {name}", flush=True)
        try:
            step()
        except SaoError as reason:
            failed.append(str(reason))
    if failed:
        raise SaoError(f"{len(failed)} of {len(steps)} could not be fetched; the rest is here.\n" + "\n".join(failed))
    print("Everything is here. On machines without a network set HF_HUB_OFFLINE=1.")


def _cache() -> Path:
    from huggingface_hub import constants

    path = Path(constants.HF_HUB_CACHE)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _of_libraries(runs: Sequence[Planned]) -> list[tuple[str, Callable[[], object]]]:
    """What lm-eval and alpaca_eval fetch by themselves."""
    steps: list[tuple[str, Callable[[], object]]] = []
    if any(run.spec["stage"] == "evaluate" and run.spec["params"]["evaluate"]["length_term"] for run in runs):
        steps += [(f"alpaca_eval's {name}", partial(_alpaca_eval, name)) for name in ALPACA_EVAL]
    boards = [run.spec["params"]["leaderboard"] for run in runs if run.spec["stage"] == "leaderboard"]
    if official := next((board for board in boards if board["data"] is None), None):
        steps.append(("lm-eval's data sets", partial(_leaderboard, Leaderboard.model_validate(official))))
    return steps


def _alpaca_eval(name: str) -> None:
    from alpaca_eval import constants
    from huggingface_hub import hf_hub_download

    try:  # into the folder where it looks
        hf_hub_download("tatsu-lab/alpaca_eval", name, repo_type="dataset", cache_dir=constants.DEFAULT_CACHE_DIR)
    except Exception as error:
        raise SaoError(
            f"{name} of tatsu-lab/alpaca_eval cannot be fetched from the hub: {in_one_line(error)}"
        ) from None


def _leaderboard(settings: Leaderboard) -> None:
    from sao_lib.evaluate import leaderboard

    with tempfile.TemporaryDirectory() as folder:
        manager = leaderboard.task_manager(Path(folder), settings)
        for task in leaderboard.TASKS:
            leaderboard.load_task(task, manager)
