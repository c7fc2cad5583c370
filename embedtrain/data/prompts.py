"""What is put around a text. One table for training, evaluation and export.

A prompt and its text are joined by literal concatenation: what the template says is what the model sees, with no space
added. A template stands in front of the text; with `{text}` in it, what comes after that stands behind the text, and is
still there when the text is cut. The template of the query may hold `{instruction}`, which is filled by the instruction of
the row or of its source:

    prompts:
      query: "Instruct: {instruction}\\nQuery: "
      document: ""
      sources:
        sts: {query: "Instruct: Retrieve similar text\\nQuery: ", document: "Instruct: Retrieve similar text\\nQuery: "}

A symmetric task gives both sides the same prompt, as `sts` does above.
"""

from __future__ import annotations

from collections.abc import Mapping

from embedtrain.errors import ConfigError
from embedtrain.types import Role, table_of

PLACEHOLDER = "{instruction}"
TEXT = "{text}"
SIDES: tuple[Role, Role] = ("query", "document")


class Prompts:
    """The prompt of every (role, source, instruction).

    query, document   templates for all sources that have none of their own
    sources           source name -> {query: template, document: template}; a role left out takes the common template
    instructions      whether instructions are read; False: those of rows and sources are left out, for models that take none
    pool_prompt       whether pooling reads the tokens of the prompt; if not, the leading special token (BOS, CLS) is
                      left out with them, as sentence-transformers does for `include_prompt=False`, and with those behind the
                      text the last one (EOS, SEP)

    Raises ConfigError for an unknown role, and a template with several places for the text.
    """

    def __init__(
        self,
        *,
        query: str = "",
        document: str = "",
        sources: Mapping[str, Mapping[str, str]] | None = None,
        instructions: bool = True,
        pool_prompt: bool = True,
    ) -> None:
        self.templates = {"query": query, "document": document}
        self.sources = {name: dict(own) for name, own in (sources or {}).items()}
        self.instructions = instructions
        self.pool_prompt = pool_prompt
        for name, own in self.sources.items():
            for role in own.keys() - set(SIDES):
                raise ConfigError(f"prompts.sources.{name}.{role}: unknown role. Expected query or document.")
        for source in (None, *self.sources):
            for side in SIDES:
                if self.template(side, source).count(TEXT) > 1:
                    raise ConfigError(
                        f"{self._key(side, source)} is {self.template(side, source)!r}: {TEXT} may stand in it once."
                    )

    def template(self, role: Role, source: str | None = None) -> str:
        return self.sources.get(table_of(source or ""), {}).get(role, self.templates[role])

    def around(self, role: Role, *, source: str | None = None, instruction: str | None = None) -> tuple[str, str]:
        """The text put before a text of this role, and the text put behind it.

        An instruction takes the place of `{instruction}`; with an empty query template it is what stands before the text. A
        document template without the placeholder does not take the instruction: most tasks instruct the query alone.

        Raises ConfigError where an instruction would be lost or a template would stay unfilled.
        """
        template = self.template(role, source)
        if not self.instructions:
            instruction = None
        if PLACEHOLDER in template:
            if not self.instructions:
                raise ConfigError(
                    f"{self._key(role, source)} is {template!r}, and prompts.instructions=false leaves {PLACEHOLDER} empty. Take "
                    "it out of the prompt, or read instructions."
                )
            if instruction is None:
                raise ConfigError(
                    f"{self._key(role, source)} is {template!r}, but {source or 'this text'} brings no instruction. "
                    f"Set data.sources.<name>.instruction, give the rows one, or take {PLACEHOLDER} out of the prompt."
                )
            before, _, behind = template.partition(TEXT)
            return before.replace(PLACEHOLDER, instruction), behind.replace(PLACEHOLDER, instruction)
        if instruction is None or role == "document":
            before, _, behind = template.partition(TEXT)
            return before, behind
        if template:
            raise ConfigError(
                f"{self._key(role, source)} is {template!r}, and the row brings the instruction {instruction!r}, which "
                f"would be lost. Say where it goes with {PLACEHOLDER}, or leave instructions out: prompts.instructions=false"
            )
        return instruction, ""

    def behind(self, role: Role) -> set[str]:
        """What is put behind texts of this role, by any source; of an instruction, its place."""
        return {self.template(role, source).partition(TEXT)[2] for source in (None, *self.sources)}

    def same_behind(self) -> str | None:
        """What is put behind every text, if it is the same behind all of them; else None."""
        found = {text for side in SIDES for text in self.behind(side)}
        only = found.pop()
        return None if found or PLACEHOLDER in only else only

    def exported(self) -> dict[str, str]:
        """What stands before texts, for the model folder: `query`, `document`, and `<source>_<role>` where a source has its own.

        A template that needs an instruction is no finished prompt and is left out: its user supplies the whole prompt.
        """
        return {name: t.partition(TEXT)[0] for name, t in self.named().items() if PLACEHOLDER not in t}

    def named(self) -> dict[str, str]:
        """All templates by these names."""
        prompts = dict(self.templates)
        for name, own in self.sources.items():
            prompts |= {f"{name}_{role}": template for role, template in own.items()}
        return prompts

    @staticmethod
    def _key(role: Role, source: str | None) -> str:
        return f"prompts.sources.{table_of(source)}.{role}" if source else f"prompts.{role}"
