"""The one exception a user may meet: a sentence saying what, where and what to do."""


class SaoError(Exception):
    """A mistake or a missing thing that the user can mend; shown without a traceback."""
