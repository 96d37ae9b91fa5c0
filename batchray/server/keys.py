"""API keys: random, shown once, stored as hashes.  Each key has its own user.

A key is 256 random bits, so one round of SHA-256 suffices: a slow hash only protects secrets that can be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchray.errors import ConfigError
from batchray.schema import new_id
from batchray.store import utc_now
from batchray.support.files import atomic_write

_PREFIX = "br-"
_FILE = "keys.json"


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key: its name, its user, and its hash.  An operator's key also reads what is about all users."""

    name: str
    user_id: str
    digest: str
    created_at: str
    is_operator: bool = False


class KeyFile:
    """The key file of a data directory.  A running server sees changes at once."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / _FILE
        self._keys: tuple[Key, ...] = ()
        self._stamp: tuple[int, int] | None = None

    def all(self) -> tuple[Key, ...]:
        """Return all keys.  Raises ConfigError if the file cannot be read."""
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._keys = tuple(Key(**entry) for entry in json.loads(self._file.read_text(encoding="utf-8")))
                self._stamp = stamp
        except FileNotFoundError:
            self._keys, self._stamp = (), None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot be read: {error}", str(self._file)) from None
        return self._keys

    def find(self, key: str) -> Key | None:
        """Return a key as it is stored, or None.  Compares with every key in constant time: timing reveals nothing."""
        digest, found = _digest(key), None
        for each in self.all():
            if hmac.compare_digest(each.digest, digest):
                found = each
        return found

    def add(self, name: str, *, is_operator: bool = False) -> str:
        """Create a key for a new user and return it; it is shown only once.  Raises ConfigError for a name in use."""
        if any(each.name == name for each in self.all()):
            raise ConfigError(f"there is a key named {name!r} already")
        key = _PREFIX + secrets.token_urlsafe(32)
        self._write((*self._keys, Key(name, new_id("user"), _digest(key), utc_now(), is_operator)))
        return key

    def remove(self, name: str) -> None:
        """Remove a key; its user's jobs stay.  Raises ConfigError for an unknown name."""
        left = tuple(each for each in self.all() if each.name != name)
        if len(left) == len(self._keys):
            raise ConfigError(f"there is no key named {name!r}")
        self._write(left)

    def _write(self, keys: tuple[Key, ...]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([_stored(key) for key in keys], indent=1)
        with atomic_write(self._file, encoding="utf-8", permissions=0o600, has_many_writers=True) as file:
            file.write(text)


def _stored(key: Key) -> dict[str, Any]:
    """Return a key as it is stored.  A version before operators' keys can read the others."""
    fields = asdict(key)
    if not key.is_operator:
        del fields["is_operator"]
    return fields


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()  # a header may hold any bytes
