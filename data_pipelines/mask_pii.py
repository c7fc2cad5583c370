"""Write texts with what identifies a person replaced by its kind: ann@acme.com becomes [EMAIL].

    python -m data_pipelines.mask_pii documents.jsonl --fields text title --out masked.jsonl

EnterpriseEM (arXiv:2406.00010) masks internal documents before anything is trained on them, or sent to a language model. Here it
is done by regular expressions, with check digits where a number has them:

    EMAIL   addresses
    URL     of the web, where --urls is given: most are no secret
    IBAN    account numbers, those whose check digits are right
    CARD    of 13 to 19 digits, in groups of four or none, those whose check digit is right
    IP      version 4 and 6
    PHONE   numbers of 7 to 15 digits behind +, or in the groups that phone numbers are written in

Names, addresses, dates of birth and numbers of your own company have no form that an expression could know: they stay. The paper
finds names with Presidio and a model of spaCy; run such a tool before, and name what you know yourself:
--also EMPLOYEE='E-[0-9]{6}'. A .txt is masked line by line. Of a .jsonl, texts and lists of texts under --fields are; every other
key stays as it is.
"""

from __future__ import annotations

import argparse
import gzip
import ipaddress
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embedtrain.data.sources.lines import LinesFile
from embedtrain.errors import ConfigError, DataError, EmbedtrainError


class Kind(NamedTuple):
    """What is masked: where it may be, and whether it is."""

    name: str
    pattern: re.Pattern[str]
    is_one: Callable[[str], bool]


def always(_: str) -> bool:
    return True


def is_card(text: str) -> bool:
    """The Luhn sum of the digits ends in 0.

    >>> is_card("4111 1111 1111 1111"), is_card("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(digits)]
    return 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """The number, letters as 10 to 35 and the first four places at the end, is 1 modulo 97 (ISO 7064).

    >>> is_iban("DE89 3704 0044 0532 0130 00"), is_iban("DE88 3704 0044 0532 0130 00")
    (True, False)
    """
    plain = "".join(text.split()).upper()
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def is_address(text: str) -> bool:
    """Of version 6 only those with a group of three digits or more: a::b is a name in C++, and [9::2] a slice in Python.

    >>> is_address("10.0.0.1"), is_address("1.2.3.400"), is_address("fe80::1"), is_address("9::2")
    (True, False, True, False)
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.version == 4 or any(len(group) > 2 for group in text.split(":"))


def is_phone(text: str) -> bool:
    """7 to 15 digits (E.164).

    >>> is_phone("+49 30 1234567"), is_phone("12 34")
    (True, False)
    """
    return 7 <= sum(c.isdigit() for c in text) <= 15


# In this order: a card number would also do as a phone number.
_EMAIL = Kind("EMAIL", re.compile(r"(?<![\w.+%-])[\w.+%-][\w.+%'-]*@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}"), always)
_URL = Kind("URL", re.compile(r"\b(?:https?://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]}]"), always)
_IBAN = Kind("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), is_iban)
_CARD = Kind(
    "CARD",
    re.compile(
        r"(?<![\d.,-])(?:"
        r"[1-9]\d{3}([ -]?)\d{4}\1\d{4}\1\d{1,7}"  # 4111 1111 1111 1111
        r"|3\d{3}([ -]?)\d{6}\2\d{5}"  # American Express
        r")(?![\d-]|[.,]\d)"
    ),
    is_card,
)
_IP = Kind(
    "IP",
    re.compile(
        r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"
        r"|(?<![\w.:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])"
    ),
    is_address,
)
_PHONE = Kind(
    "PHONE",
    re.compile(
        r"(?<![\w.,+/-])(?:"
        r"\+\d(?:[ ./()-]{0,2}\d){6,14}"  # +49 (0)30 123-4567
        r"|\(\d{2,5}\)[ /-]?\d(?:[ /-]?\d){4,9}"  # (030) 123 4567
        r"|0\d{2,4}[ /-]\d(?:[ -]?\d){4,9}"  # 030 1234567
        r"|\d{3}[ .-]\d{3}[ .-]\d{4}"  # 415-555-0132
        r")(?![\w-]|[.,]\d)"
    ),
    is_phone,
)


def kinds(*, urls: bool = False, also: Sequence[str] = ()) -> list[Kind]:
    """What to mask, in order. `also`: NAME=expression. Raises ConfigError for one that is not."""
    own = []
    for entry in also:
        name, is_pair, expression = entry.partition("=")
        try:
            pattern = re.compile(expression)
        except re.error as error:
            raise ConfigError(f"--also {entry}: not a regular expression: {error}.") from None
        if not is_pair or not name.isidentifier() or pattern.match(""):
            raise ConfigError(
                f"--also {entry}: expected NAME=expression, with an expression that never matches nothing."
            )
        own.append(Kind(name, pattern, always))
    return [*own, _EMAIL, *([_URL] if urls else []), _IBAN, _CARD, _IP, _PHONE]


def mask(text: str, what: Sequence[Kind], counts: Counter[str] | None = None) -> str:
    """Each occurrence as [NAME]. `counts` gets how often each was found.

    >>> mask("Call +1 415 555 0132 or mail a.b@c.org from 10.0.0.1.", kinds())
    'Call [PHONE] or mail [EMAIL] from [IP].'
    """
    found: Counter[str] = Counter() if counts is None else counts
    for kind in what:

        def put(match: re.Match[str], kind: Kind = kind) -> str:
            if not kind.is_one(match[0]):
                return match[0]
            found[kind.name] += 1
            return f"[{kind.name}]"

        text = kind.pattern.sub(put, text)
    return text


def masked_row(values: Mapping[str, Any], fields: Sequence[str], what: Sequence[Kind], counts: Counter[str]) -> Any:
    """A row with its fields masked. Raises DataError for a row that has none of them, and for a field that is no text."""
    if not any(field in values for field in fields):
        raise DataError(
            f"there is none of {', '.join(fields)}, but {', '.join(values) or 'nothing'}. Name them: --fields."
        )
    changed = dict(values)
    for field in fields:
        value = values.get(field)
        if isinstance(value, str):
            changed[field] = mask(value, what, counts)
        elif isinstance(value, list) and all(isinstance(text, str) for text in value):
            changed[field] = [mask(text, what, counts) for text in value]
        elif value is not None:
            raise DataError(
                f"{field} is {type(value).__name__} {str(value)[:60]!r}. Expected a text or a list of texts."
            )
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help=".txt or .jsonl, or a .gz of one")
    parser.add_argument("--fields", nargs="+", default=["text"], help="keys of a .jsonl that hold texts")
    parser.add_argument("--urls", action="store_true", help="mask addresses of the web too")
    parser.add_argument(
        "--also", nargs="*", default=[], metavar="NAME=EXPRESSION", help="kinds of your own, masked first"
    )
    parser.add_argument("--out", required=True, type=Path, help="file to write, of the same form")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    try:
        what, lines = kinds(urls=given.urls, also=given.also), LinesFile(given.texts)
        with _opened(given.out) as file:
            for row in range(len(lines)):
                if ".jsonl" not in given.texts.suffixes:
                    file.write(mask(lines.text(row), what, counts) + "\n")
                    continue
                try:
                    changed = masked_row(lines.json(row), given.fields, what, counts)
                except DataError as error:
                    raise DataError(f"{lines.where(row)}: {error}") from None
                file.write(json.dumps(changed, ensure_ascii=False) + "\n")
    except EmbedtrainError as error:
        sys.exit(f"error: {error}")
    said = ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "nothing"
    print(f"{given.out}: {len(lines):,} rows, masked: {said}")


def _opened(path: Path) -> Any:
    return gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w", encoding="utf-8")


if __name__ == "__main__":
    main()
