"""What an OpenAI-compatible server says, read with distrust: it counts where it can be true, and holds no key of ours.

The reply was paid for, so whatever is wrong with a part of it, the rest is kept.
"""

import json
from typing import Any

from sao_lib.errors import masked
from sao_lib.files import Record, well_formed

MOST_TOKENS = 10**9  # a reply that says more, or fewer than none, does not say its tokens


def read_reply(body: bytes) -> Record | None:
    """{text, finish_reason, tokens, top_logprobs} of a chat completion's first choice; None where there is none.

    `tokens` are those in and out, null where the server says none that can be; `top_logprobs` [token, log p] of the
    first token's alternatives. Raises ValueError where `body` is no JSON.
    """
    reply = _json(body)
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    choice = choices[0]
    return {
        "text": _text(_part(choice, "message").get("content")),
        "finish_reason": _text(choice.get("finish_reason")) or None,
        "tokens": _tokens(_part(reply, "usage")),
        "top_logprobs": _top_logprobs(_part(choice, "logprobs")),
    }


def read_models(body: bytes) -> frozenset[str]:
    """Names in a server's list of models, empty where it is none; raises ValueError where `body` is no JSON."""
    reply = _json(body)
    listed = reply.get("data") if isinstance(reply, dict) else None
    found = [entry.get("id") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return frozenset(_text(name) for name in found if isinstance(name, str))


def refusal(body: bytes) -> str:
    """What a server says in place of a completion, in 160 characters; empty where it says nothing."""
    reply = _json(body)
    error = reply.get("error") if isinstance(reply, dict) else None
    return _text(error.get("message") if isinstance(error, dict) else error)[:160]


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _part(of: Record, key: str) -> Record:
    """What stands under `key`, if it is an object."""
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return well_formed(masked(value)) if isinstance(value, str) else ""


def _tokens(usage: Record) -> list[int] | None:
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    possible = all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts)
    return [int(count) for count in counts if count is not None] if possible else None


def _top_logprobs(logprobs: Record) -> list[list[Any]]:
    content = logprobs.get("content")
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    listed = first.get("top_logprobs")
    found = (
        [(e.get("token"), e.get("logprob")) for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    )
    return [
        [_text(token), float(p)]
        for token, p in found
        if isinstance(token, str) and isinstance(p, int | float) and -1e4 <= p <= 1e-3  # above 0 by rounding alone
    ]
