"""The one exception a user may meet: a sentence saying what, where and what to do; and others' said in a line."""


class SaoError(Exception):
    """A mistake or a missing thing that the user can mend; shown without a traceback."""


class Killed(SaoError):
    """A process that works for a run was ended from outside: the same run can succeed when it is tried again."""


def in_one_line(error: BaseException) -> str:
    """What another library's error says: its first line, 160 characters at most, or its class where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:160] if lines else type(error).__name__
