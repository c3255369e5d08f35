"""What requests may hold, with a bound on every size. What is not named here is refused, but in a chat, where clients
of other servers send settings that this one does not have.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_BODY = 1 << 20  # bytes
MOST_HISTORY = 2000
MOST_ITEMS = 100
MOST_BEAMS = 512
MOST_TOKENS = 4096
Name = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Entry = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | Name


class Strict(BaseModel):
    """A body without other fields than these."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Sampled(Strict):
    """How text is drawn."""

    temperature: float = Field(0.0, ge=0, le=5, description="0: the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=1 << 32)


class Subject(Strict):
    """Whom a question is about."""

    task: Name = "video"
    user: Name | None = Field(None, description="a user of the test file, by the logs' own id")
    history: list[Entry] | None = Field(
        None, max_length=MOST_HISTORY, description="instead of a user: ids, SIDs or titles, the oldest first"
    )
    label: Name | None = Field(None, description="of a task by label: which interaction is wanted")
    keyword: Name | None = Field(None, description="of a task by keyword")


class RecommendRequest(Sampled, Subject):
    """`/v1/recommend`."""

    model: Name | None = Field(None, description="one of /v1/models; the first without")
    k: int = Field(10, ge=1, le=MOST_ITEMS, description="items")
    num_beams: int = Field(32, ge=1, le=MOST_BEAMS, description="beams of the item search")
    exclude_seen: bool = Field(False, description="never recommend the items of the history")
    prior_weight: float = Field(0.0, ge=0, le=100, description="of the item prior: log p + weight * log prior")
    thinking: bool = Field(False, description="think before the items")
    max_thinking_tokens: int = Field(256, ge=1, le=MOST_TOKENS)
    stream: bool = Field(False, description="the thinking as it is written, as server-sent events")


class PromptRequest(Subject):
    """`/v1/prompts`."""

    target: Entry | None = Field(None, description="the item that a text is about")


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str = Field(max_length=MOST_BODY)


class Turn(BaseModel):
    """A message."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part] = Field(max_length=MOST_BODY)


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(Sampled):
    """`/v1/chat/completions`, as OpenAI has it."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    messages: list[Turn] = Field(min_length=1, max_length=200)
    model: Name | None = None
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    stop: Name | list[Name] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    thinking: bool = Field(False, description="think first; also chat_template_kwargs.enable_thinking")
    max_thinking_tokens: int = Field(256, ge=1, le=MOST_TOKENS)
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def thinks(self) -> bool:
        """Whether thinking is asked for, in either way."""
        return self.thinking or (self.chat_template_kwargs or {}).get("enable_thinking") is True

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages with their contents as texts."""
        return [
            {"role": m.role, "content": m.content if isinstance(m.content, str) else "".join(p.text for p in m.content)}
            for m in self.messages
        ]

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())[:8]
