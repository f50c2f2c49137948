"""LangChain's ChatOpenAI and OpenAIEmbeddings, and LiteLLM, against a running server; see test_openai_client.py for how to
run them. They are what many programs reach a server through, and must work unchanged.
"""

import os

import pytest

# Before it is imported: its table of prices would be fetched.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

langchain_openai = pytest.importorskip("langchain_openai")
litellm = pytest.importorskip("litellm")

BASE_URL = os.environ.get("HOST_BASE_URL", "").rstrip("/")
API_KEY = os.environ.get("HOST_API_KEY", "none")
MODEL = "host-demo"

pytestmark = pytest.mark.skipif(not BASE_URL, reason="HOST_BASE_URL names no server")

SCHEMA = {
    "title": "city",
    "type": "object",
    "properties": {"city": {"enum": ["Bonn", "Ulm"]}},
    "required": ["city"],
    "additionalProperties": False,
    # A small model may go on with white space until its tokens are used up.
    "x-guidance": {"whitespace_flexible": False},
}
MESSAGES = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is AI?"}]


def chat(**more):
    settings = {"temperature": 0, "max_tokens": 30, "max_retries": 0, "timeout": 120} | more
    return langchain_openai.ChatOpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY, model=MODEL, **settings)


def test_langchain_whole_and_streamed():
    whole = chat().invoke([("system", "You are a helpful assistant."), ("human", "What is AI?")])
    assert whole.content and whole.usage_metadata["output_tokens"] > 0
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    chunks = list(chat(stream_usage=True).stream([("system", "You are a helpful assistant."), ("human", "What is AI?")]))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


def test_langchain_batches():
    answers = chat().batch(["What is AI?", "What is AI?"])
    assert answers[0].content == answers[1].content


def test_langchain_structured_output_and_tools():
    structured = chat(max_tokens=60).with_structured_output(SCHEMA, method="json_schema")
    assert structured.invoke("Which city?")["city"] in ("Bonn", "Ulm")
    tool = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": SCHEMA}}
    [call] = chat(max_tokens=60).bind_tools([tool], tool_choice="weather").invoke("The weather?").tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Bonn", "Ulm")


def test_langchain_embeddings(pooling_url):
    settings = {"base_url": pooling_url, "api_key": API_KEY, "model": MODEL, "max_retries": 0}
    # Otherwise it sends token ids of OpenAI's own tokenizer.
    vectors = langchain_openai.OpenAIEmbeddings(check_embedding_ctx_length=False, **settings)
    first, second = vectors.embed_documents(["What is AI?", "What is a city?"])
    assert first == pytest.approx(vectors.embed_query("What is AI?"), abs=1e-6)
    assert len(first) == len(second) and first != second


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_chat(provider):
    settings = {"model": f"{provider}/{MODEL}", "api_base": f"{BASE_URL}/v1", "api_key": API_KEY, "num_retries": 0}
    request = {"messages": MESSAGES, "temperature": 0, "max_tokens": 30, **settings}
    whole = litellm.completion(**request)
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 0
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **request) if chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content


def test_litellm_errors_have_their_class():
    settings = {"model": f"openai/{MODEL}", "api_base": f"{BASE_URL}/v1", "api_key": API_KEY, "num_retries": 0}
    with pytest.raises(litellm.BadRequestError) as error:
        litellm.completion(messages=MESSAGES, temperature=-1, **settings)
    assert "temperature" in str(error.value)


def test_litellm_embeddings_and_reranking(pooling_url):
    settings = {"model": f"hosted_vllm/{MODEL}", "api_key": API_KEY}
    embedded = litellm.embedding(input=["What is AI?", "A city"], api_base=pooling_url, **settings)
    assert len(embedded.data) == 2 and len(embedded.data[0]["embedding"]) > 0
    documents = ["A city by the sea", "What is AI?"]
    ranked = litellm.rerank(query="What is AI?", documents=documents, top_n=1, api_base=pooling_url, **settings)
    assert [result["index"] for result in ranked.results] == [1]
    assert ranked.results[0]["relevance_score"] == pytest.approx(1.0, abs=1e-5)
