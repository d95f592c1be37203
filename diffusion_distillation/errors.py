"""The one error for what a user gave."""


class InputError(ValueError):
    """Something given to us cannot work; the message says what was given, what is allowed and what to do.

    Scripts print the message alone; any other error is a bug, and keeps its traceback.
    """
