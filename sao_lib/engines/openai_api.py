"""Any OpenAI-compatible API, through the openai client: OPENAI_API_KEY and OPENAI_BASE_URL from the environment.

Every reply is written to the run's folder as it comes, and what is there is not asked again, so that a killed or
failed run continues call by call. The cap in dollars holds across restarts: what the replies cost, plus the most that
the calls still to make can cost, is checked before the first of them.
"""

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sao_lib.engines import TOO_LONG, Completion, Conversation, not_asked
from sao_lib.engines.journal import JOURNAL, Journal, keys_of
from sao_lib.engines.openai_reply import read_models, read_reply, refusal
from sao_lib.errors import SHORTEST, SaoError, in_one_line, masked
from sao_lib.files import Record, well_formed
from sao_lib.settings import PARAMS
from sao_lib.settings import Engine as EngineSettings
from sao_lib.yaml_files import read_yaml

CHARACTERS_PER_TOKEN = 3  # a cautious divisor for the estimate; English text has about 4
# The client waits 0.5, 1, 2, 4 and then 8 seconds, each less up to a quarter, or as long as Retry-After says, up to two
# minutes. Fourteen retries without that header wait 65 to 88 seconds: more than a rate limit's minute.
RETRIES = 14
FIRST_RETRIES = 2  # until the server has answered once: an address where nobody listens is said in seconds
UNREADABLE = 3  # tries of a call whose reply is no JSON, because a connection may have been cut
PAUSE = 1.0  # seconds between them
OFFICIAL = "https://api.openai.com/v1"


def require_key(model: str) -> None:
    """Raise SaoError unless OPENAI_API_KEY is set to what can be a key, and OPENAI_BASE_URL, if set, to an address."""
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        raise SaoError(f"{model} needs OPENAI_API_KEY in the environment (and OPENAI_BASE_URL for another server).")
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        if not _printable(os.environ.get(name, "")):
            raise SaoError(
                f"{name} holds a blank, a line break or a letter that is not ASCII, which no key has; set it again."
            )
    try:
        parts = urlsplit(_address())
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and _printable(_address())
        right = right and not parts.query and not parts.fragment  # the client would append its own path to them
    except ValueError:  # no port
        right = False
    if not right:  # what it is may be a key in the wrong place
        raise SaoError(f"OPENAI_BASE_URL is no address like {OFFICIAL}; set it again or unset it.")


def _printable(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def _address() -> str:
    return os.environ.get("OPENAI_BASE_URL") or OFFICIAL


def _place() -> str:
    """The address without what may be secret in it: the name before the host, and a path that is not plain words."""
    parts = urlsplit(_address())
    plain = all(len(word) < SHORTEST for word in parts.path.split("/"))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path if plain else '/...'}"


def check(model: str) -> None:
    """Raise SaoError unless the API takes OPENAI_API_KEY and lists `openai/...`: models are shut down over the years.

    A server that keeps no list is believed to have the model.
    """
    require_key(model)
    listed = _listed(os.environ.get("OPENAI_BASE_URL", ""), os.environ["OPENAI_API_KEY"])
    name = model.removeprefix("openai/")
    if listed and name not in listed:
        near = ", ".join(get_close_matches(name, sorted(listed), 5, 0.4)) or ", ".join(sorted(listed)[:5])
        raise SaoError(
            f"The API lists no model {name}, which may have been shut down; name one that it has, e.g. {near}."
        )


@cache
def _listed(url: str, key: str) -> frozenset[str]:
    """Names of the models behind the API, empty where it does not say; it is asked once in a command."""
    from openai import APIConnectionError, APIStatusError, AuthenticationError, OpenAI

    try:
        return read_models(OpenAI(api_key=key, timeout=30).models.with_raw_response.list().content)
    except ValueError:
        raise SaoError(
            f"The API at {_place()} gave no list of models but what is no JSON; check OPENAI_BASE_URL."
        ) from None
    except AuthenticationError:
        raise SaoError("The API refused OPENAI_API_KEY; check the key.") from None
    except APIConnectionError as error:
        raise SaoError(f"The API cannot be reached ({in_one_line(error)}); check OPENAI_BASE_URL.") from None
    except APIStatusError as error:
        if error.status_code in (403, 404, 405, 501):  # a server without a list, a key that may not read it
            return frozenset()
        raise SaoError(
            f"The API answered {error.status_code} when asked which models it has; try again later."
        ) from None


@cache
def _rates() -> dict[str, Any]:
    return dict(read_yaml(PARAMS / "rates.yaml")["api"])


def usd(model: str, tokens_in: float, tokens_out: float) -> float:
    """Dollars at the listed price; raises SaoError if the model has none."""
    rate = _rates().get(model)
    if rate is None:
        raise SaoError(f"params/rates.yaml lists no price for '{model}', so its cost cannot be capped; add a line.")
    return float((tokens_in * rate["input"] + tokens_out * rate["output"]) / 1e6)


def most_usd(model: str, conversations: Sequence[Conversation], max_tokens: int) -> float:
    """Upper estimate in dollars of one call per conversation; raises SaoError if the model has no listed price."""
    characters = sum(len(m["content"]) for c in conversations for m in c.messages)
    tokens_in = characters / CHARACTERS_PER_TOKEN + 20 * len(conversations)
    return usd(model, tokens_in, max_tokens * len(conversations))


class OpenAIEngine:
    def __init__(self, model: str, settings: EngineSettings, log: Path) -> None:
        from openai import OpenAI

        require_key(f"openai/{model}")
        self.model, self.settings, self.log = model, settings, log
        self.journal = Journal(log.parent / JOURNAL)
        try:
            self.client = OpenAI(base_url=_address(), max_retries=RETRIES, timeout=120)
        except Exception as error:  # of a proxy or a certificate that the environment names
            raise SaoError(f"No client for {_place()} can be made: {in_one_line(error)}") from None
        self.answered = False  # by the server, whatever it said

    def _all(self, conversations: Sequence[Conversation], max_tokens: int, extra: Sequence[Record]) -> list[Record]:
        """One reply per conversation: those of the journal, and the rest asked now."""
        requests = [
            {"model": self.model, "messages": _sent(c), "max_completion_tokens": max_tokens, **more}
            for c, more in zip(conversations, extra, strict=True)
        ]
        keys = keys_of(requests)
        most = {
            i: most_usd(self.model, [conversations[i]], max_tokens)
            for i, key in enumerate(keys)
            if key not in self.journal.rows
        }
        self._check_cap(math.fsum(most.values()), len(most))
        failures: list[SaoError] = []

        def ask(i: int) -> None:
            if failures:
                return
            try:
                self.journal.keep(keys[i], self._call(requests[i], most[i]))
            except SaoError as error:
                failures.append(error)

        with ThreadPoolExecutor(self.settings.api_workers) as pool:
            list(pool.map(ask, most))
        if failures:
            kept = sum(key in self.journal.rows for key in keys)
            raise SaoError(
                f"{str(failures[0]).rstrip('.')}; {kept} of these {len(keys)} replies are kept in {self.journal.path}, "
                "and the same command continues after them."
            )
        return [self.journal.rows[key] for key in keys]

    def _check_cap(self, most: float, calls: int) -> None:
        spent = self.journal.spent
        if calls and spent + most > self.settings.max_usd:
            raise SaoError(
                f"These {calls} calls to {self.model} may cost ${most:.2f}, with ${spent:.2f} spent before: more than "
                f"the cap engine.max_usd = ${self.settings.max_usd:.2f}. Raise the cap or lower n."
            )

    def _call(self, request: Record, most: float) -> Record:
        """What is kept of one reply; one that does not say its tokens, or is unreadable, counts as `most` dollars."""
        from openai import BadRequestError

        where = f"The API at {_place()}"
        for lost in range(UNREADABLE):
            try:
                body = self._asked(request, where)
                reply = read_reply(body)
                break
            except BadRequestError:
                return {"model": self.model, "text": "", "finish_reason": TOO_LONG, "tokens_in": 0, "tokens_out": 0,
                        "top_logprobs": [], "usd": lost * most}  # fmt: skip
            except ValueError:
                if lost == UNREADABLE - 1:
                    raise SaoError(f"{where} gave no completion but what is no JSON; check OPENAI_BASE_URL.") from None
                time.sleep(PAUSE)
        if reply is None:
            said = refusal(body)
            raise SaoError(f"{where} gave no completion{f' but: {said}' if said else '; check OPENAI_BASE_URL'}.")
        tokens = reply.pop("tokens")
        return {
            "model": self.model,
            **reply,
            "tokens_in": tokens[0] if tokens else 0,
            "tokens_out": tokens[1] if tokens else 0,
            "usd": lost * most + (usd(self.model, *tokens) if tokens else most),
        }

    def _asked(self, request: Record, where: str) -> bytes:
        """The body of the server's answer to one call; BadRequestError where the request has too many tokens."""
        from openai import APIConnectionError, APIStatusError, AuthenticationError, BadRequestError, OpenAIError

        client = self.client
        try:
            if not self.answered:
                client = client.with_options(max_retries=min(FIRST_RETRIES, RETRIES))
                try:
                    return self._body(client, request)
                except APIStatusError as error:
                    self.answered = True
                    if error.status_code not in (408, 409, 429) and error.status_code < 500:
                        raise
                    client = self.client
                    time.sleep(PAUSE)
            return self._body(client, request)
        except AuthenticationError:
            raise SaoError(f"The API refused OPENAI_API_KEY for {self.model}; check the key.") from None
        except APIConnectionError:
            raise SaoError(f"{where} cannot be reached; check OPENAI_BASE_URL.") from None
        except APIStatusError as error:
            if isinstance(error, BadRequestError) and error.code == "context_length_exceeded":
                raise
            said = masked(error.message)[:160]
            raise SaoError(f"The API answered {error.status_code} for {self.model}: {said}") from None
        except OpenAIError as error:
            raise SaoError(f"{where} gave no completion: {in_one_line(error)}") from None

    def _body(self, client: Any, request: Record) -> bytes:
        body: bytes = client.chat.completions.with_raw_response.create(**request).content
        self.answered = True
        return body

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        extra = [{"temperature": temperature, "seed": seed % 2**31} for seed in seeds]
        return [
            not_asked()
            if row["finish_reason"] == TOO_LONG
            else Completion(row["text"], row["finish_reason"] == "stop", row["tokens_in"], row["tokens_out"])
            for row in self._all(conversations, max_tokens, extra)
        ]

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        extra: list[Record] = [{"temperature": 0, "logprobs": True, "top_logprobs": 20}] * len(conversations)
        out, rows = [], self._all(conversations, 1, extra)
        asked = [row for row in rows if row["finish_reason"] != TOO_LONG]
        if asked and not any(row["top_logprobs"] for row in asked):  # it would leave every pair undecided
            raise SaoError(
                f"The API at {_place()} gives no log-probabilities for {self.model}; set its reading to text."
            )
        for row in rows:
            if row["finish_reason"] == TOO_LONG:
                out.append((math.nan,) * len(labels))
                continue
            top = row["top_logprobs"]
            mass = [math.fsum(math.exp(p) for token, p in top if token.strip() == label.strip()) for label in labels]
            out.append(tuple(_log(p) for p in mass))
        return out

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        raise SaoError("An OpenAI-compatible API does not give log-probabilities of a given answer; use engine vllm.")

    def close(self) -> None:
        self.client.close()


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -100.0


def _sent(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": well_formed(m["content"])} for m in conversation.messages]
