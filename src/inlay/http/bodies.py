"""What requests may say, in the words of OpenAI's interface; what vLLM adds to it is spelled as there.

A field that is not here is refused: it would change the answer, or somebody thinks that it does. Those of `Idle`
change nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=300)]
Text = Annotated[str, Field(max_length=4_000_000)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=1_000_000)]
MAX_CHOICES = 64
"""Answers to one request."""


class Body(BaseModel):
    """An object without other keys than these."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Idle(Body):
    """Fields that say something about a request, and change no answer."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class StructuredOutputs(Body):
    """One form that the answer has; see `inlay.serve.grammar`."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=1000)] | None = None
    grammar: Text | None = None


class Still(Idle):
    """Fields that clients send as they are where nothing is said: with another value they would change the answer."""

    best_of: Literal[1] | None = None
    use_beam_search: Literal[False] | None = None
    length_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    min_tokens: Literal[0] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    include_stop_str_in_output: Literal[False] | None = None


class Drawn(Still):
    """How answers are drawn, and what ends them."""

    model: Name
    adapters: (
        Annotated[dict[Name, Annotated[float, Field(ge=-100, le=100)]], Field(min_length=1, max_length=8)] | None
    ) = None
    """Several adapters in one answer, what each adds times its weight; `model` is the base then."""
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=1000)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]
        | None
    ) = None
    stop_token_ids: Annotated[list[Token], Field(max_length=1000)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class FunctionName(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class Chat(Drawn):
    """`/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none"] | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    web_search_options: None = None
    reasoning_effort: None = None
    verbosity: Literal["medium"] | None = None
    prediction: dict[str, Any] | None = None
    """What the answer may be, to make it sooner: no answer is another."""
    add_generation_prompt: Literal[True] | None = None
    continue_final_message: Literal[False] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=0)] | None = None


class Completion(Drawn):
    """`/v1/completions`."""

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Annotated[list[Tokens], Field(max_length=256)]
    )
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class Embedding(Idle):
    """`/v1/embeddings`."""

    model: Name
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None


class Tokenize(Body):
    """`/tokenize`: of a text as it stands, or of a conversation as it is asked."""

    model: Name
    prompt: Text | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None


class Load(Body):
    """`/v1/load_lora_adapter`."""

    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False
    pinned: bool = False


class Unload(Body):
    """`/v1/unload_lora_adapter`."""

    lora_name: Name
