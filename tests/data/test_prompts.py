import pytest

from embedtrain.data.prompts import Prompts
from embedtrain.errors import ConfigError


def test_a_prompt_is_the_template_and_nothing_is_added():
    prompts = Prompts(query="query:", document="passage: ")
    assert prompts.around("query") == ("query:", "")
    assert prompts.around("document") == ("passage: ", "")


def test_a_source_overrides_the_role_it_names_only():
    prompts = Prompts(query="q: ", document="d: ", sources={"sts": {"document": "q: "}})
    assert prompts.around("query", source="sts") == ("q: ", "")
    assert prompts.around("document", source="sts") == ("q: ", "")
    assert prompts.around("document", source="nq") == ("d: ", "")


def test_the_instruction_takes_its_place():
    prompts = Prompts(query="Instruct: {instruction}\nQuery: ")
    assert prompts.around("query", instruction="Find {it}") == ("Instruct: Find {it}\nQuery: ", "")
    assert prompts.around("document", instruction="Find {it}") == ("", "")


def test_with_an_empty_template_the_instruction_is_the_prompt():
    assert Prompts().around("query", instruction="Represent this: ") == ("Represent this: ", "")


def test_an_instruction_is_never_lost_and_never_missing():
    with pytest.raises(ConfigError, match=r"prompts.query is 'q: '.*'Find'.*would be lost"):
        Prompts(query="q: ").around("query", instruction="Find")
    with pytest.raises(ConfigError, match=r"prompts.sources.nq.query .*nq brings no instruction"):
        Prompts(query="{instruction}: ").around("query", source="nq")


def test_a_model_without_instructions_reads_none_and_offers_no_place_for_one():
    assert Prompts(instructions=False).around("query", instruction="Find") == ("", "")
    assert Prompts(query="q: ", instructions=False).around("query", source="nq", instruction="Find") == ("q: ", "")
    with pytest.raises(ConfigError, match=r"prompts.query .*prompts.instructions=false"):
        Prompts(query="{instruction}: ", instructions=False).around("query", instruction="Find")


def test_only_finished_prompts_are_exported():
    prompts = Prompts(query="{instruction}: ", document="d: ", sources={"nq": {"query": "nq: "}})
    assert prompts.exported() == {"document": "d: ", "nq_query": "nq: "}


def test_an_unknown_role_is_refused():
    with pytest.raises(ConfigError, match=r"prompts\.sources\.nq\.passage: unknown role"):
        Prompts(sources={"nq": {"passage": "x"}})


def test_what_follows_the_place_of_the_text_stands_behind_it():
    prompts = Prompts(
        query='This sentence: "{text}" means in one word: "', document="{text}!", sources={"a": {"query": "{text}"}}
    )
    assert prompts.around("query") == ('This sentence: "', '" means in one word: "')
    assert prompts.around("document") == ("", "!")
    assert prompts.around("query", source="a") == ("", "")
    assert prompts.behind("query") == {'" means in one word: "', ""}
    assert prompts.exported() == {"query": 'This sentence: "', "document": "", "a_query": ""}


def test_an_instruction_may_stand_behind_the_text_and_is_itself_no_template():
    prompts = Prompts(query="Text: {text}\nTask: {instruction}\n")
    assert prompts.around("query", instruction="Find {text}") == ("Text: ", "\nTask: Find {text}\n")
    assert Prompts().around("query", instruction="Find {text}") == ("Find {text}", "")
    with pytest.raises(ConfigError, match=r"'Find'.*would be lost"):
        Prompts(query="{text}!").around("query", instruction="Find")


@pytest.mark.parametrize(
    ("query", "document", "same"),
    [
        ("", "", ""),
        ("a{text}b", "{text}b", "b"),
        ("{text}b", "", None),
        ("{text}{instruction}", "{text}{instruction}", None),
    ],
)
def test_whether_the_same_stands_behind_every_text(query, document, same):
    assert Prompts(query=query, document=document).same_behind() == same
    sources = {"other": {"query": "{text}c"}}
    assert Prompts(query=query, document=document, sources=sources).same_behind() is None


def test_a_text_has_one_place():
    with pytest.raises(ConfigError, match=r"prompts.sources.nq.document is .*\{text\} may stand in it once"):
        Prompts(sources={"nq": {"document": "{text} {text}"}})
