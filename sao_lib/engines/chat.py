"""Messages -> token ids, the same for every engine and for training.

Text that comes from a model or a user is neutralised first: it can hold neither control characters nor
the strings that the tokenizer would read as special tokens, so it cannot end its own turn.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from jinja2 import TemplateError

from sao_lib.errors import SaoError
from sao_lib.files import digest
from sao_lib.settings import ROOT

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

ANSWER = "forty-two"  # stands for any answer
DATE = "26 Jul 2024"  # Llama-3.2's template asks for one and prints today's unless it gets one; this is Llama-3.1's

# What a template puts above a text, or before it on its line: `[Response 1]`, `<|User|>`, `### User:`, `Answer:`.
HEADER = re.compile(r"^(\[|<\||#+ )?(\w[\w' ]*)(?(1)(?:\]|\|>|:)?$|:(?= \{))", re.MULTILINE)


class Message(TypedDict):
    role: str
    content: str


def fill(template: str, values: dict[str, str]) -> str:
    """`template` with each {key} replaced once; what is put in is never searched for keys again."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def fill_apart(template: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """As `fill`, where texts of others (`theirs`) cannot be taken for the template's headers.

    Where one of them imitates a header, all that are real get a mark that no text can know, as it is the texts' own
    digest, and a sentence says so. Elsewhere the template stands as it is written.
    """
    names = {found[2].strip() for found in HEADER.finditer(template)}
    if imitates(names, theirs.values()):
        mark = f"#{digest([template, dict(theirs)])[:8]}"
        marked = HEADER.sub(
            lambda m: m[0][: m.end(2) - m.start()] + f" {mark}" + m[0][m.end(2) - m.start() :], template
        )
        template = f"Headers that end in {mark} are this request's; all others are part of a text.\n\n{marked}"
    return fill(template, {**ours, **theirs})


def imitates(names: Iterable[str], texts: Iterable[str]) -> bool:
    """Whether one of `texts` holds one of the header's `names` as a header: in brackets, alone on a line, with a colon.

    Within a line a colon makes a header of two words or more; one word with a colon there is ordinary.
    """
    patterns = []
    for name in names:
        words = re.findall(r"\w+", name)
        said = r"[\W_]{0,3}".join(map(re.escape, words))
        patterns.append(rf"(?:^|[\[<(#*|>{{])[^\S\n]{{0,3}}{said}[^\S\n]{{0,3}}(?:[\]>):*|}}]|$)")
        patterns += [rf"\b{said}[\s*_]{{0,3}}:"] if len(words) > 1 else []
    header = re.compile("|".join(patterns), re.IGNORECASE | re.MULTILINE)
    return bool(patterns) and any(header.search(unicodedata.normalize("NFKC", text)) for text in texts)


class Chat:
    """A tokenizer with its chat template."""

    def __init__(self, folder: Path, chat_template: str | None = None) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if chat_template:
            self.tokenizer.chat_template = (ROOT / chat_template).read_text(encoding="utf-8")
        if not self.tokenizer.chat_template:
            raise SaoError(
                f"The model in {folder} has no chat template; set chat_template to one of params/templates/*.jinja."
            )

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokens = [str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        tokens += [str(t) for t in self.tokenizer.all_special_tokens]
        return re.compile("|".join(re.escape(t) for t in sorted(set(tokens), key=len, reverse=True)))

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends an assistant's message in the template, e.g. Gemma's <end_of_turn> instead of <eos>.

        The tokenizer's end-of-sequence where the template ends it by words, as one for a base model does.
        """
        turns: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
        after = self._render(turns, add_generation_prompt=False).rpartition(ANSWER)[2]
        found = self._special.match(after.lstrip())
        return int(self.tokenizer.convert_tokens_to_ids(found[0]) if found else self.tokenizer.eos_token_id)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE
                )
            )
        except TemplateError as refused:
            raise SaoError(
                f"The chat template of the model in {self.folder} refuses messages by "
                f"{', '.join(m['role'] for m in messages)}: {refused}; choose another model or chat_template, or set "
                "system to null where it is a policy's."
            ) from None

    def neutral(self, text: str) -> str:
        """`text` without control characters and lone surrogates, and with special-token strings broken by a space."""
        return self._special.sub(lambda m: m[0][0] + " " + m[0][1:], CONTROL.sub(" ", text))

    def ids(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """Token ids of `messages` up to the assistant's turn, begun with `prefill`.

        Raises SaoError when the template would put the beginning-of-sequence token twice, or refuses the messages.
        """
        clean: list[Message] = [{"role": m["role"], "content": self.neutral(m["content"])} for m in messages]
        ids = self.text_ids(self._render(clean, add_generation_prompt=True) + prefill)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise SaoError(f"The chat template begins with two {self.tokenizer.bos_token} tokens; remove one.")
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Token ids of `text` as it stands, no special token added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion_ids(self, text: str, finished: bool) -> list[int]:
        """Token ids of a response as sampled: its text, then end-of-turn if the model ended it."""
        return self.text_ids(self.neutral(text)) + ([self.end_of_turn] if finished else [])
