"""Holds the project's language: plain, modern technical English, and the field's own terms.

A pattern stands for a habit, so a hit may be in code, in a comment, a docstring, a message or a text file.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Write instead "if", "except", "again" or "restarted", a term of the field, or a name for who acts.
BANNED = {
    "archaic words": (
        r"\b(?:whoever|whomever|whatsoever|anew|nobody|lest|whence|thereof|therein|wherein|hitherto|afresh|"
        r"betimes|heed\w*|amidst|upon)\b"
    ),
    "`but for`, meaning except": r"\bbut for\b",
    "doing, as a noun": r"\b(?:of (?:its|his|their|our|another's|its own) (?:own )?doing|own doing)\b",
    "`Let X be done`": r"(?:^|[\"#(.:;]\s*)Let (?!ta\b|'s\b)\w+",
    "`tell whether`, `tell of`": r"\b(?:tell|tells|told|telling) (?:whether|of)\b",
    "`where`, meaning if": (
        r"\b(?:None|True|False|empty|zero|0|\w+Error|nothing) where\b|\bwhere (?:it|they|there|that|this|none|"
        r"one|no) (?:is|are|was|has|have|can|cannot|does|do|did|may)\b|\bRaises? [^.]{0,80}\bwhere\b|"
        r"\b(?:canceled|faster|slower|lowest|again|only) where\b|\b[Ww]here no\b"
    ),
    "`go on`, meaning continue": r"\b(?:go|goes|going|went) on\b",
    "`take note`": r"\b(?:take|takes|took|taking) note\b",
    "`hear`, meaning receive": r"\b(?:hear|hears|heard|hearing)\b",
    "`beside`, meaning in addition": r"\bbeside (?:it|that|this|them|its|the|what)\b|\bbeside\.",
    "`in good order`, `as it was`, `so long as`": (
        r"\bin good order\b|\bleft alone\b|\bfor so long\b|\bso many of\b|\bso often\b"
    ),
    "`mend`, meaning fix": r"\b(?:mend|mends|mended|mending)\b",
    "`for ever`, `in vain`, `without a word`": r"(?i:\b(?:for ever|in vain|without a word)\b)",
    "`somebody`, without a name for who acts": r"(?i:\b(?:somebody|everybody|anybody|someone)\b)",
    "`is no object`, meaning is not an object": (
        r"(?<!there )\b(?:is|are) (?:still )?no (?:JSON |strict |plain )?"
        r"(?:object|list|number|template|message|text|string|mapping|JSON)s?\b"
    ),
    "`so many`, for a number": r"(?i:\bso many\b)",
    "`wait for company`": r"\bwait(?:s|ed|ing)? for company\b",
    "sentences about `what`": r"(?:^|[\"#]\s*|[.:;]\s+)What [a-z]+ [^?]{0,160}\.",
    "test titles without a subject": r"\bdef test_(?:what|whatever|whoever|of_what|those_who)_",
    "private metaphors": (
        r"\b(?:wish|wishes|obituar\w*|inquest\w*|last words|last_words|bury|buried|attendants?|standstill|"
        r"salvage|sequels?|keeper|fleet|mortal|lame|leave-taking|take leave|takes leave|at rest|at_rest|"
        r"at once take)\b"
    ),
    "old names": (
        r"\b(?:Ledger|Answerer|SteppedRuns?|Fetched|Turns|turns_of|Obituary|LastWords|Pulse|Patience|patience|PATIENCE|"
        r"Wishes|crash_at|serve_many|see_through|keep_for|plain_heads|call_in_pieces|is_alone)\b"
    ),
}
# Public settings, and the variable of one: they keep a banned word because users' files and environments have them.
PUBLIC_NAMES = re.compile(r"\b(?:provider_patience_s|provider_start_patience_s|BATCHRAY_PROVIDER_START_PATIENCE_S)\b")
# Lines that keep a banned word for a reason: what others named, and this list.
ALLOWED = {
    "tests/unit/test_language.py": r"^ +r?\"",  # the list above
    "batchray/store/migrations.py": r"\bwishes\b",  # the name of a column in databases of version 0.1.0
}
FOLDERS = ("batchray", "configs", "notebooks", "tests", ".github", ".ci")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".js", ".html", ".css"}


@functools.cache
def texts() -> dict[str, str]:
    """Return the text files of the project by name, without recorded test data."""
    inside = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*")]
    scripts = set((ROOT / ".ci").iterdir())  # without a suffix
    found = [
        file for file in (*ROOT.glob("*"), *inside) if file.is_file() and (file.suffix in SUFFIXES or file in scripts)
    ]
    own = sorted(file for file in found if ROOT / "tests" / "data" not in file.parents)
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in own}


@pytest.mark.parametrize("habit", BANNED)
def test_the_language_is_plain(habit: str) -> None:
    pattern = re.compile(BANNED[habit], re.MULTILINE)
    found = []
    for name, text in texts().items():
        if not pattern.search(text) and not pattern.search(text.replace("_", " ")):
            continue
        allowed = re.compile(ALLOWED.get(name, r"(?!)"))
        for number, line in enumerate(text.splitlines(), start=1):
            own = PUBLIC_NAMES.sub("", line)
            # `re` takes an underscore for a letter of a word, so a second search reads an identifier as words.
            if any(map(pattern.search, (own, own.replace("_", " ")))) and not allowed.search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
