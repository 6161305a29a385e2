"""A chat model's capabilities, as LangChain's `ModelProfile`."""

from __future__ import annotations

from langchain_core.language_models import ModelProfile

from ..chat.grammar import can_enforce
from ..chat.template import renders_tools
from ..models.loading import LoadedModel


def model_profile(target: LoadedModel) -> ModelProfile:
    """Return what `target` can do as a chat model; used by LangChain's agents to choose a strategy.

    `tool_calling` is True if the chat template renders tools, which means the model was trained on them. `tool_choice`
    and `structured_output` are True if the answer's form can be enforced (extra `structured`).
    """
    tools = renders_tools(target.require_tokenizer())
    enforced = can_enforce()
    return ModelProfile(
        name=target.name,
        max_input_tokens=target.context_window,
        text_inputs=True,
        image_inputs=False,
        image_url_inputs=False,
        pdf_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        image_tool_message=False,
        pdf_tool_message=False,
        text_outputs=True,
        image_outputs=False,
        audio_outputs=False,
        video_outputs=False,
        tool_calling=tools,
        tool_choice=enforced,
        tool_call_streaming=tools,
        structured_output=enforced,
        attachment=False,
        temperature=True,
    )
