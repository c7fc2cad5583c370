"""What is masked, what only looks like it, and the files that are written."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_pipelines import mask_pii
from data_pipelines.mask_pii import kinds, mask
from embedtrain.errors import ConfigError
from tests.data.helpers import write_jsonl


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Mail ann.o'neil+x@mail.acme-corp.co.uk, please.", "Mail [EMAIL], please."),
        ("(jürgen@müller.de)", "([EMAIL])"),
        ("call +49 (0)30 123-45678 now", "call [PHONE] now"),
        ("call (030) 123 4567.", "call [PHONE]."),
        ("030 1234567", "[PHONE]"),
        ("415-555-0132", "[PHONE]"),
        ("card 4111-1111-1111-1111, paid", "card [CARD], paid"),
        ("5500000000000004", "[CARD]"),
        ("3782 822463 10005", "[CARD]"),
        ("to DE89 3704 0044 0532 0130 00 by Friday", "to [IBAN] by Friday"),
        ("GB29NWBK60161331926819.", "[IBAN]."),
        ("from 192.168.0.1:80 and 2001:db8::8a2e:370:7334", "from [IP]:80 and [IP]"),
    ],
)
def test_what_identifies_somebody_becomes_its_kind(text: str, masked: str):
    assert mask(text, kinds()) == masked


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-11-27 at 12:30:45",
        "version 1.2.3 of 4.18.0-25",
        "1,234,567.89 dollars and 0.1234567890123",
        "4111-1111-1111-1112",  # the check digit is wrong
        "DE88 WXYZ ABCD EFGH",
        "999.1.1.1",
        "std::vector a::b :: x[9::2]",
        "0 0 2 0 0 0 3 0 0 0 0 0 0 0 0 5",
        "import numpy as np  # @property",
        "order 12345678",
        "https://acme.com/path",
    ],
)
def test_what_only_looks_like_it_stays(text: str):
    assert mask(text, kinds()) == text


def test_addresses_of_the_web_and_kinds_of_ones_own():
    what = kinds(urls=True, also=["EMPLOYEE=E-[0-9]{6}"])
    assert mask("E-123456 wrote https://acme.com/a?b=1.", what) == "[EMPLOYEE] wrote [URL]."
    for entry, message in (("E-\\d", "expected NAME"), ("A=(", "not a regular"), ("A=x*", "never matches nothing")):
        with pytest.raises(ConfigError, match=message):
            kinds(also=[entry])


def test_what_was_found_is_counted():
    counts: Counter[str] = Counter()
    mask("a@b.cd e@f.gh 10.0.0.1", kinds(), counts)
    assert counts == {"EMAIL": 2, "IP": 1}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["mask_pii", *map(str, arguments)])
    mask_pii.main()


def test_the_program_masks_the_named_fields_and_nothing_else(tmp_path: Path, monkeypatch, capsys):
    row = {"text": "mail a@b.cd", "title": "e@f.gh", "headings": ["i@j.kl", "x"], "owner": "m@n.op", "id": 3}
    path, out = write_jsonl(tmp_path / "a.jsonl", [row]), tmp_path / "b.jsonl"
    run(monkeypatch, path, "--fields", "text", "headings", "--out", out)
    assert json.loads(out.read_text()) == row | {"text": "mail [EMAIL]", "headings": ["[EMAIL]", "x"]}
    assert "1 rows, masked: 2 EMAIL" in capsys.readouterr().out


def test_a_text_file_is_masked_line_by_line(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text("mail a@b.cd\nno one\n")
    run(monkeypatch, tmp_path / "a.txt", "--out", tmp_path / "b.txt.gz")
    with gzip.open(tmp_path / "b.txt.gz", "rt") as file:
        assert file.read() == "mail [EMAIL]\nno one\n"


@pytest.mark.parametrize(
    ("row", "message"), [({"body": "x"}, r"a\.jsonl:1: there is none of text"), ({"text": 3}, "text is int '?3'?")]
)
def test_a_row_without_text_is_named(row, message, tmp_path: Path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, path, "--out", tmp_path / "b.jsonl")
