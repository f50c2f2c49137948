"""Structured output, tools, reasoning and the Responses API with the official openai client; the Messages API with
Anthropic's. Run like test_openai_client.py; what holds for any small chat model is asserted, whatever it says.
"""

import json
import os

import anthropic
import openai
import pytest

BASE_URL = os.environ.get("HOST_BASE_URL", "").rstrip("/")
API_KEY = os.environ.get("HOST_API_KEY", "none")

pytestmark = pytest.mark.skipif(not BASE_URL, reason="HOST_BASE_URL names no server")

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bonn", "Ulm"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    # A small model may go on with white space until its tokens are used up.
    "x-guidance": {"whitespace_flexible": False},
}
MESSAGES = [{"role": "user", "content": "What is AI?"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": SCHEMA}}


@pytest.fixture(scope="session")
def client():
    return openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def claude():
    return anthropic.Anthropic(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


def fits(text):
    value = json.loads(text)
    return value["city"] in ("Bonn", "Ulm") and 1 <= value["days"] <= 9


def test_json_schema(client, model):
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, response_format=form, n=3, seed=1, max_tokens=100
    )
    assert all(fits(choice.message.content) for choice in answer.choices)


@pytest.mark.parametrize(
    "structure, check",
    [
        ({"regex": "[0-9]{4}"}, lambda text: len(text) == 4 and text.isdigit()),
        ({"choice": ["left", "right"]}, lambda text: text in ("left", "right")),
        ({"json": SCHEMA}, fits),
        ({"grammar": 'start: "<" /[a-c]+/ ">"'}, lambda text: text[0] == "<"),
    ],
)
def test_structured_outputs(client, model, structure, check):
    arguments = dict(model=model, prompt="Say:", max_tokens=100, seed=2, extra_body={"structured_outputs": structure})
    whole = client.completions.create(**arguments).choices[0].text
    assert check(whole)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**arguments, stream=True)]
    assert "".join(pieces) == whole


def test_a_schema_that_does_not_compile(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt="a", extra_body={"structured_outputs": {"regex": "("}})
    assert error.value.body["param"] == "structured_outputs"


def test_a_forced_tool(client, model):
    choice = {"type": "function", "function": {"name": "weather"}}
    arguments = dict(model=model, messages=MESSAGES, tools=[TOOL], tool_choice=choice, seed=3, max_tokens=100)
    [call] = client.chat.completions.create(**arguments).choices[0].message.tool_calls
    assert call.function.name == "weather" and fits(call.function.arguments)
    streamed = ""
    for chunk in client.chat.completions.create(**arguments, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            streamed += delta.function.arguments or ""
    assert streamed == call.function.arguments


def test_required_tools(client, model):
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, seed=3, max_tokens=150
    )
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls" and fits(call.function.arguments)


def test_responses(client, model):
    arguments = dict(model=model, input="What is AI?", max_output_tokens=20, temperature=0)
    response = client.responses.create(**arguments, store=False)
    assert response.status in ("completed", "incomplete") and response.output_text
    events = list(client.responses.create(**arguments, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == response.output_text == events[-1].response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_messages(claude, model):
    # The client no longer names sampling parameters; the API has them.
    greedy = {"temperature": 0}
    arguments = dict(model=model, max_tokens=20, system="Be brief.", messages=MESSAGES, extra_body=greedy)
    message = claude.messages.create(**arguments)
    assert message.role == "assistant" and message.stop_reason in ("end_turn", "max_tokens")
    with claude.messages.stream(**arguments) as stream:
        assert "".join(stream.text_stream) == message.content[0].text
    arguments.pop("max_tokens")
    arguments.pop("extra_body")
    assert claude.messages.count_tokens(**arguments).input_tokens == message.usage.input_tokens + (
        message.usage.cache_read_input_tokens or 0
    )


def test_a_forced_tool_in_messages(claude, model):
    tool = {"name": "weather", "description": "The weather", "input_schema": SCHEMA}
    message = claude.messages.create(
        model=model, max_tokens=100, messages=MESSAGES, tools=[tool], tool_choice={"type": "tool", "name": "weather"}
    )
    [block] = [block for block in message.content if block.type == "tool_use"]
    assert block.name == "weather" and fits(json.dumps(block.input))


def test_errors_in_messages(claude, model):
    with pytest.raises(anthropic.BadRequestError) as error:
        claude.messages.create(model=model, max_tokens=10, messages=MESSAGES, extra_body={"top_k": -5})
    assert "top_k" in str(error.value)
