"""A page that stands alone. Also for reports of other parts of the program, which bring rules of their own."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from html import escape


def document(title: str, sections: Sequence[str], style: str = "") -> str:
    """The page as one string: no script, no link, no font from elsewhere; the policy in its head forbids them.

    `style`: rules beside those of report.css. Sections that are empty are left out.
    """
    common = (importlib.resources.files("embedtrain.evaluation.report") / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{common}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )
