"""A model's name -> a folder on disk: embedded in a package, a local folder, or hub `org/name@revision`."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from sao_lib import hub
from sao_lib.errors import SaoError, in_one_line
from sao_lib.files import check_writable, file_digest
from sao_lib.machine import has_gpu
from sao_lib.progress import quiet
from sao_lib.settings import PARAMS, ROOT
from sao_lib.yaml_files import read_yaml

PATTERNS = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]  # of a hub model: no code, no second copy
CACHE = Path(os.path.expanduser(os.environ.get("SAO_MODELS") or ROOT / ".cache" / "models")).absolute()


def resolve(name: str) -> Path:
    """The folder holding `name`'s weights, config and tokenizer.

    `embedded/...` is taken from a package and converted once; an existing folder, absolute or from the repository's
    root, is used as it is; anything else is `org/name@revision` on the hub. Raises SaoError when it cannot be had.
    """
    if name.startswith("embedded/"):
        return _embedded(name)
    return _local(name) or _hub(name)


def unpack() -> None:
    """Convert every model that comes in an installed package, so that no run has to."""
    with quiet(CACHE / "unpack.log"):
        for name in read_yaml(PARAMS / "models.yaml"):
            if name.startswith("embedded/"):
                resolve(name)


def check(name: str) -> None:
    """Raise SaoError unless `name` can be had, without loading it or fetching its weights.

    Of a hub model config.json is fetched: that the hub lists a gated model does not say that it may be read.
    """
    if name.startswith("embedded/"):
        _source(name, _entry(name))
    elif not name.startswith("openai/") and not _local(name):
        _hub(name, dry_run=True)


def to_fetch_gib(name: str) -> float:
    """GiB of a hub model that are not on this machine yet; 0 of others, and where the hub does not say."""
    if name.startswith(("embedded/", "openai/")) or _local(name):
        return 0.0
    from huggingface_hub import snapshot_download

    repo, revision = hub.model(name)
    try:
        files = snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, dry_run=True)
    except Exception:
        return 0.0  # fetching it says why
    return sum(file.file_size or 0 for file in files if file.will_download) / 2**30


def check_cache(names: Iterable[str]) -> None:
    """Raise SaoError if one of these models is still to be converted and the cache for it cannot be written."""
    embedded = {name for name in names if name.startswith("embedded/") and _entry(name)["convert"] != "none"}
    if any(not os.path.isfile(_converted(name) / "config.json") for name in embedded):
        check_writable(CACHE)


def entry_of(name: str) -> dict[str, Any]:
    """What params/models.yaml says of a model, empty if nothing; a hub revision does not matter."""
    return dict(read_yaml(PARAMS / "models.yaml").get(name.partition("@")[0], {}))


def attention_for(model_folder: str | Path, asked: str) -> tuple[str, str | None]:
    """The attention to load a model with, and why, when it is not the one asked for.

    Raises SaoError unless one of flash_attention_2, sdpa and eager is asked for.
    """
    from transformers import AutoConfig
    from transformers.utils import is_flash_attn_2_available

    if asked not in ("flash_attention_2", "sdpa", "eager"):
        raise SaoError(f"train.attention is '{asked}'; it must be flash_attention_2, sdpa or eager.")
    config = AutoConfig.from_pretrained(model_folder).get_text_config()
    used, reasons = asked, []
    if asked == "flash_attention_2" and not (has_gpu() and is_flash_attn_2_available()):
        missing = "flash-attn is not installed" if has_gpu() else "there is no CUDA device"
        used, reasons = "sdpa", [f"FlashAttention-2 cannot run because {missing}"]
    if used == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        # transformers 5.19 hands the soft-cap to SDPA, which ignores it without a word
        used = "eager"
        reasons.append(f"SDPA would drop the soft-cap on attention scores of {config.model_type}")
    return used, "; ".join(reasons) or None


def end_ids(model: Any) -> set[int]:
    """Ids of the tokens that end a transformers model's answer: of its turn, and of the sequence."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])


def _local(name: str) -> Path | None:
    """The folder `name`, from the repository's root as data files are, or None if it can only be a hub model.

    Raises SaoError for a folder without a model, and for a missing one that is written as a path.
    """
    folder = ROOT / name
    if os.path.isdir(folder):
        if problem := _no_model(folder):
            raise SaoError(f"The folder {name} holds no model: {problem}.")
        return folder
    if name.startswith((".", "/")) or os.path.exists(folder):
        what = "is a file; name the folder of a model" if os.path.exists(folder) else "does not exist"
        raise SaoError(f"The model folder {name} {what}.")
    if name.startswith("~") or "://" in name or name.partition("@")[0].count("/") > 1:
        raise SaoError(
            f"'{name}' names no model: it must be org/name of the hub, embedded/..., openai/... or a folder."
        )
    return None


def _no_model(folder: Path) -> str | None:
    """Why a folder can be no model for transformers, None where it can."""
    if not (folder / "config.json").is_file():
        return "it has no config.json"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return "its config.json is not JSON"
    if not isinstance(config, dict) or not config.get("model_type"):
        return "its config.json says no model_type"
    return None if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) else "it has no weights"


def _entry(name: str) -> dict[str, Any]:
    entry = entry_of(name)
    if not entry:
        names = ", ".join(n for n in read_yaml(PARAMS / "models.yaml") if n.startswith("embedded/"))
        raise SaoError(f"There is no embedded model '{name}'; there are: {names}.")
    if lacks := [key for key in ("package", "convert", "files", "sha256") if key not in entry]:
        raise SaoError(f"params/models.yaml says no {lacks[0]} of {name}.")
    return entry


def _converted(name: str) -> Path:
    return CACHE / name.removeprefix("embedded/")


def _package(name: str, model: str) -> Path:
    spec = find_spec(name)  # located, not imported: some of these packages import what we do not need
    if spec is None or spec.origin is None:
        raise SaoError(f"The package {name} that carries {model} is not installed; run `make setup`.")
    return Path(spec.origin).parent


def _source(name: str, entry: dict[str, Any]) -> Path:
    folder = _package(entry["package"], name)
    for part in entry.get("parts", []):
        _package(part.split("/")[0], name)
    return folder


def _embedded(name: str) -> Path:
    entry = _entry(name)
    source = _source(name, entry)
    if entry["convert"] == "none":
        _verify(source / entry["files"][0], entry, name)
        return source / str(entry["folder"])
    target = _converted(name)
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / "config.json").is_file():
            scratch = target.with_name(target.name + ".part")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            gguf = _gguf(source, entry, scratch)
            _verify(gguf, entry, name)
            _convert(gguf, scratch)
            if entry.get("parts"):
                gguf.unlink()
            scratch.rename(target)
    return target


def _gguf(source: Path, entry: dict[str, Any], scratch: Path) -> Path:
    if not entry.get("parts"):
        return source / str(entry["files"][0])
    joined = scratch / str(entry["files"][0])
    with joined.open("wb") as out:
        for part in entry["parts"]:
            package, _, inside = part.partition("/")
            with (_package(package, str(entry["package"])) / inside).open("rb") as file:
                shutil.copyfileobj(file, out)
    return joined


def _verify(path: Path, entry: dict[str, Any], name: str) -> None:
    if not path.is_file() or file_digest(path) != entry["sha256"]:
        raise SaoError(
            f"The weights of {name} ({path}) are not the ones in params/models.yaml (sha256 differs); "
            f"reinstall the package {entry['package']}."
        )


def _convert(gguf: Path, target: Path) -> None:
    """GGUF -> safetensors in bf16 with config and tokenizer, in `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _parsed_once():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    model.hf_quantizer = None  # transformers dequantizes on load but refuses to save until it forgets why
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Meanwhile a GGUF file is parsed once and as a plain array.

    transformers parses it for the tokenizer, the configuration and the weights, and gguf makes a memory map's object of
    each of a vocabulary's quarter of a million entries: most of a conversion's time.
    """
    import gguf
    import numpy as np

    package: Any = gguf

    class Plain(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    own, package.GGUFReader = package.GGUFReader, cache(Plain)
    try:
        yield
    finally:
        package.GGUFReader = own


def _hub(name: str, dry_run: bool = False) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import HFValidationError

    repo, revision = hub.model(name)
    try:
        found = snapshot_download(repo, revision=revision, allow_patterns=["config.json"] if dry_run else PATTERNS)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        raise SaoError(
            f"The model {name} cannot be had: it is neither embedded nor a local folder, and the hub says: "
            f"{in_one_line(error)} Check the name and revision, the network and HF_TOKEN, or give a local folder."
        ) from None
    return Path(found)
