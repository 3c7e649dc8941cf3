"""The one exception a user may meet: a sentence saying what, where and what to do. It and all we write hold no key."""

import base64
import json
import os
import re
from urllib.parse import quote, urlsplit

SECRET_NAME = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|(^|_)(PASS|PW|PAT|JWT|AUTH|AUTH_HEADER|CREDENTIALS?))(_(OLD|NEW|\d+))?$",
    re.IGNORECASE,
)
URL_NAME = re.compile(r"(_URL|_PROXY|_ENDPOINT)$", re.IGNORECASE)
MASK = "***"
SHORTEST = 8  # characters: a shorter value is no secret, and words of a text may be the same
STRETCH = 12  # characters of a secret that are masked also where the rest of it is cut off
SHOWN = 80  # characters of a wrong value or name in a message
# Characters that move a terminal's cursor, colour it or turn its writing round, or that nobody sees.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


class SaoError(Exception):
    """A mistake or a missing thing that the user can mend; shown without a traceback, and without any key."""

    def __init__(self, sentence: str) -> None:
        super().__init__(visible(masked(str(sentence))))


class Killed(SaoError):
    """A process that works for a run was ended from outside: the same run can succeed when it is tried again."""


def in_one_line(error: BaseException) -> str:
    """What another library's error says: its first line, 160 characters at most, or its class where it has no text."""
    lines = masked(str(error)).strip().splitlines()
    return lines[0].strip()[:160] if lines else type(error).__name__


def short(text: str) -> str:
    """What somebody wrote, for a message: in one line, its first 80 characters."""
    line = text.replace("\n", "\\n")
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def visible(text: str) -> str:
    """`text` with an escape such as \\x1b for each character that would do something to a terminal but stand there."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def masked(text: str) -> str:
    """`text` with the keys, tokens and passwords of this process's environment as `***`, cut ones too.

    A server may repeat our Authorization header in what it says: nothing that comes from one is shown or kept without.
    """
    for secret in _secrets():
        size = min(len(secret), STRETCH)
        pieces = {secret[at : at + size] for at in range(len(secret) - size + 1)}
        if any(piece in text for piece in pieces):
            text = _without(text, pieces, size)
    return text


def _secrets() -> set[str]:
    """Values that no output may hold, also as they stand in JSON, in an address and in base64."""
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and not value.startswith("/")}
    for name, value in os.environ.items():
        if URL_NAME.search(name) and "@" in value:
            found.add(value.rpartition("@")[0].rpartition("/")[2])
            found.add(_password(value))
    forms = {
        form
        for value in map(str.strip, found)
        for form in (value, json.dumps(value)[1:-1], quote(value, safe=""), _base64(value))
    }
    return {form for form in forms if len(form) >= SHORTEST}


def _base64(value: str) -> str:
    return base64.b64encode(value.encode(errors="replace")).decode().rstrip("=")


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:  # no address
        return ""


def _without(text: str, pieces: set[str], size: int) -> str:
    """`text` with every stretch in which each `size` characters are one of `pieces` as one mask."""
    out, at = [], 0
    while at < len(text):
        end = at
        while text[end : end + size] in pieces:
            end += 1
        out.append(MASK if end > at else text[at])
        at = end + size - 1 if end > at else at + 1
    return "".join(out)
