import pytest

from embedtrain.data.prompts import Prompts
from embedtrain.errors import ConfigError


def test_a_prompt_is_the_template_and_nothing_is_added():
    prompts = Prompts(query="query:", document="passage: ")
    assert prompts.prefix("query") == "query:"
    assert prompts.prefix("document") == "passage: "


def test_a_source_overrides_the_role_it_names_only():
    prompts = Prompts(query="q: ", document="d: ", sources={"sts": {"document": "q: "}})
    assert prompts.prefix("query", source="sts") == "q: "
    assert prompts.prefix("document", source="sts") == "q: "
    assert prompts.prefix("document", source="nq") == "d: "


def test_the_instruction_takes_its_place():
    prompts = Prompts(query="Instruct: {instruction}\nQuery: ")
    assert prompts.prefix("query", instruction="Find {it}") == "Instruct: Find {it}\nQuery: "
    assert prompts.prefix("document", instruction="Find {it}") == ""


def test_with_an_empty_template_the_instruction_is_the_prompt():
    assert Prompts().prefix("query", instruction="Represent this: ") == "Represent this: "


def test_an_instruction_is_never_lost_and_never_missing():
    with pytest.raises(ConfigError, match=r"prompts.query is 'q: '.*'Find'.*would be lost"):
        Prompts(query="q: ").prefix("query", instruction="Find")
    with pytest.raises(ConfigError, match=r"prompts.sources.nq.query .*nq brings no instruction"):
        Prompts(query="{instruction}: ").prefix("query", source="nq")


def test_a_model_without_instructions_reads_none_and_offers_no_place_for_one():
    assert Prompts(instructions=False).prefix("query", instruction="Find") == ""
    assert Prompts(query="q: ", instructions=False).prefix("query", source="nq", instruction="Find") == "q: "
    with pytest.raises(ConfigError, match=r"prompts.query .*prompts.instructions=false"):
        Prompts(query="{instruction}: ", instructions=False).prefix("query", instruction="Find")


def test_only_finished_prompts_are_exported():
    prompts = Prompts(query="{instruction}: ", document="d: ", sources={"nq": {"query": "nq: "}})
    assert prompts.exported() == {"document": "d: ", "nq_query": "nq: "}


def test_an_unknown_role_is_refused():
    with pytest.raises(ConfigError, match=r"prompts\.sources\.nq\.passage: unknown role"):
        Prompts(sources={"nq": {"passage": "x"}})
