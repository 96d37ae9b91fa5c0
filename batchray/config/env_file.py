"""Environment variables from a file: `--env-file .env`."""

from __future__ import annotations

import io
from pathlib import Path

from batchray.errors import ConfigError


def read_env_file(file: Path) -> dict[str, str]:
    """Return the variables of a file of NAME=value lines, as python-dotenv reads them.

    Quotes, comments, `export` and `${NAME}` in a value have their usual meaning.  A name without `=` sets nothing.
    Raises ConfigError with the file, and the line that is not of this form; never with a value.
    """
    from dotenv.main import DotEnv  # here, because most commands read no such file
    from dotenv.parser import parse_stream

    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(file)) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", str(file)) from None
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise ConfigError("is not of the form NAME=value", f"{file}, line {binding.original.line}")
    values = DotEnv(None, io.StringIO(text), override=False).dict()  # the environment wins in `${NAME}` too
    return {name: value for name, value in values.items() if value is not None}
