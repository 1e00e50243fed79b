"""The one exception that means: the command or its input is wrong, and here is one line that says what to do."""


class UserError(Exception):
    """Wrong command or input. Jobs print the message as one line, without a traceback, and end with exit code 2."""
