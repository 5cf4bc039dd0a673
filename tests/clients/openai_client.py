"""OpenAI's own Python client against `aweigh serve`. `cargo xtask clients` runs it.

openai_client.py URL: the server has the models "tiny" and "changed", an adapter.
"""

import asyncio
import sys

import openai

QUESTION = [{"role": "user", "content": "My printer is broken."}]
GREEDY = dict(messages=QUESTION, temperature=0, max_tokens=12)


def raises(kind, function):
    try:
        function()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")


def text_of(stream):
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, chunks


async def both(url):
    """One question to two models at once, several times each."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        async def answer(model):
            told = await client.chat.completions.create(model=model, **GREEDY)
            return told.choices[0].message.content

        return await asyncio.gather(*(answer(model) for model in ["tiny", "changed"] * 4))


def main(url):
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny", "changed"]
    assert client.models.retrieve("changed").id == "changed"
    chat = client.chat.completions.create

    whole = chat(model="tiny", **GREEDY)
    answer = whole.choices[0].message.content
    assert answer and whole.choices[0].finish_reason in ("stop", "length"), whole
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    counted = dict(stream=True, stream_options={"include_usage": True})
    streamed, chunks = text_of(chat(model="tiny", **counted, **GREEDY))
    assert streamed == answer, (streamed, answer)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    with client.chat.completions.stream(model="tiny", **{**GREEDY, "max_tokens": 200}) as stream:
        assert stream.get_final_completion().choices[0].message.content.startswith(answer)

    told = chat(model="tiny", logprobs=True, top_logprobs=3, **GREEDY).choices[0].logprobs.content
    assert "".join(token.token for token in told).strip() == answer.strip(), told
    for token in told:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob
        assert sum(2.718281828 ** top.logprob for top in token.top_logprobs) <= 1.0001

    three = chat(model="tiny", n=3, seed=1, **{**GREEDY, "temperature": 1.0})
    assert len({choice.message.content for choice in three.choices}) > 1
    stop = answer[5:8]
    cut = chat(model="tiny", stop=[stop], **GREEDY).choices[0].message.content
    assert cut == answer[: answer.index(stop)], (cut, stop, answer)

    text = client.completions.create(model="tiny", prompt="The ", temperature=0, max_tokens=6, logprobs=2)
    assert text.choices[0].text and len(text.choices[0].logprobs.token_logprobs) == 6, text

    base, changed, *others = asyncio.run(both(url))
    assert base == answer and changed != base and others == [base, changed] * 3

    error = raises(openai.NotFoundError, lambda: chat(model="gpt-4", **GREEDY))
    assert error.code == "model_not_found" and error.param == "model", error
    error = raises(openai.BadRequestError, lambda: chat(model="tiny", messages=QUESTION, temperature=-1))
    assert error.param == "temperature" and error.type == "invalid_request_error", error
    error = raises(openai.BadRequestError, lambda: chat(model="tiny", messages=QUESTION, max_tokens=10**6))
    assert error.code == "context_length_exceeded", error
    print(f"openai {openai.__version__} for Python: all checks pass")


if __name__ == "__main__":
    main(sys.argv[1])
