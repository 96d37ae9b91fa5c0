"""The wire contract, as frozen pydantic models, and the pure rules on them.

Owns the JSON that clients send and receive (Letta's batch API), ids, statuses and usage.  Imports nothing but `errors`;
every other package may import it.  Invariants:

- Field names, their order and their defaults are those of Letta's server; recorded bodies of a real one test this.
- Ids of items, runs, steps and messages are derived from the job's id and the item's index (`ids`), so none is stored.
- Unknown fields of requests are ignored, and those of agents are kept, as Letta does.

Start reading at `requests` (input), `messages` (what is stored), `visible` (what a caller sees), `outcomes` (results).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchray.schema.agents import (
        AgentState,
        Block,
        BlockLabel,
        CreateAgent,
        CreateBlock,
        EmbeddingConfig,
        LettaResponse,
        LLMConfig,
        Memory,
        Model,
        Source,
        Tool,
        UpdateAgent,
        UpdateBlock,
    )
    from batchray.schema.content import (
        Base64Image,
        Content,
        ContentPart,
        ImageContent,
        ImageSource,
        LettaImage,
        OmittedReasoningContent,
        ReasoningContent,
        RedactedReasoningContent,
        SummarizedReasoningContent,
        SummaryPart,
        TextContent,
        ToolCallContent,
        ToolReturnContent,
        UrlImage,
    )
    from batchray.schema.ids import (
        MAX_INPUT_MESSAGES,
        MAX_ITEMS,
        MAX_MESSAGES_PER_ITEM,
        MAX_OTIDS_PER_MESSAGE,
        index_of,
        is_id,
        is_job_id,
        is_message_id,
        is_of_job,
        item_id,
        job_stem,
        message_id,
        new_id,
        new_job_id,
        ordinal_of,
        otid,
        run_id,
        step_id,
    )
    from batchray.schema.jobs import TERMINAL_JOB_STATUSES, BatchJob, JobStatus, JobType, RequestCounts, StopReason
    from batchray.schema.letta_messages import (
        ApprovalRequestMessage,
        ApprovalResponseMessage,
        AssistantMessage,
        CompactionStats,
        ErrorMessage,
        EventMessage,
        HiddenReasoningMessage,
        LettaMessage,
        LettaToolCall,
        Ping,
        ReasoningMessage,
        StopReasonMessage,
        SummaryMessage,
        SystemMessage,
        ToolCallMessage,
        ToolReturnMessage,
        UsageStatistics,
        UserMessage,
    )
    from batchray.schema.messages import Message, MessageRole, MessageToolReturn, ToolCall, ToolCallFunction
    from batchray.schema.outcomes import ErrorInfo, ItemStatus, Result, Timing, Usage, status_of
    from batchray.schema.provider_waits import ProviderWait
    from batchray.schema.requests import (
        AgentRequest,
        Approval,
        ApprovalCreate,
        ApprovalReturn,
        CallbackUrl,
        ClientSkill,
        ClientTool,
        CreateBatch,
        LettaRequest,
        MessageCreate,
        MessageType,
        RequestMessage,
        ToolReturn,
        ToolReturnCreate,
        ToolReturnPart,
        message_options,
    )
    from batchray.schema.runs import (
        CompletionTokensDetails,
        Feedback,
        PromptTokensDetails,
        ProviderTrace,
        RequestConfig,
        Run,
        RunStatus,
        RunUsage,
        Step,
        StepMetrics,
    )
    from batchray.schema.visible import visible_json, visible_messages

__all__ = [
    "MAX_INPUT_MESSAGES",
    "MAX_ITEMS",
    "MAX_MESSAGES_PER_ITEM",
    "MAX_OTIDS_PER_MESSAGE",
    "TERMINAL_JOB_STATUSES",
    "AgentRequest",
    "AgentState",
    "Approval",
    "ApprovalCreate",
    "ApprovalRequestMessage",
    "ApprovalResponseMessage",
    "ApprovalReturn",
    "AssistantMessage",
    "Base64Image",
    "BatchJob",
    "Block",
    "BlockLabel",
    "CallbackUrl",
    "ClientSkill",
    "ClientTool",
    "CompactionStats",
    "CompletionTokensDetails",
    "Content",
    "ContentPart",
    "CreateAgent",
    "CreateBatch",
    "CreateBlock",
    "EmbeddingConfig",
    "ErrorInfo",
    "ErrorMessage",
    "EventMessage",
    "Feedback",
    "HiddenReasoningMessage",
    "ImageContent",
    "ImageSource",
    "ItemStatus",
    "JobStatus",
    "JobType",
    "LLMConfig",
    "LettaImage",
    "LettaMessage",
    "LettaRequest",
    "LettaResponse",
    "LettaToolCall",
    "Memory",
    "Message",
    "MessageCreate",
    "MessageRole",
    "MessageToolReturn",
    "MessageType",
    "Model",
    "OmittedReasoningContent",
    "Ping",
    "PromptTokensDetails",
    "ProviderTrace",
    "ProviderWait",
    "ReasoningContent",
    "ReasoningMessage",
    "RedactedReasoningContent",
    "RequestConfig",
    "RequestCounts",
    "RequestMessage",
    "Result",
    "Run",
    "RunStatus",
    "RunUsage",
    "Source",
    "Step",
    "StepMetrics",
    "StopReason",
    "StopReasonMessage",
    "SummarizedReasoningContent",
    "SummaryMessage",
    "SummaryPart",
    "SystemMessage",
    "TextContent",
    "Timing",
    "Tool",
    "ToolCall",
    "ToolCallContent",
    "ToolCallFunction",
    "ToolCallMessage",
    "ToolReturn",
    "ToolReturnContent",
    "ToolReturnCreate",
    "ToolReturnMessage",
    "ToolReturnPart",
    "UpdateAgent",
    "UpdateBlock",
    "UrlImage",
    "Usage",
    "UsageStatistics",
    "UserMessage",
    "index_of",
    "is_id",
    "is_job_id",
    "is_message_id",
    "is_of_job",
    "item_id",
    "job_stem",
    "message_id",
    "message_options",
    "new_id",
    "new_job_id",
    "ordinal_of",
    "otid",
    "run_id",
    "status_of",
    "step_id",
    "visible_json",
    "visible_messages",
]

# A process that needs few of the names loads few of the models, which take memory: the light ones first.
_MODULES = (
    "ids",
    "jobs",
    "provider_waits",
    "content",
    "requests",
    "messages",
    "letta_messages",
    "outcomes",
    "visible",
    "runs",
    "agents",
)


if not TYPE_CHECKING:  # or a type checker would know every name

    def __getattr__(name: str) -> Any:
        if name in __all__:
            for module in _MODULES:
                if hasattr(home := import_module(f"{__name__}.{module}"), name):
                    return globals().setdefault(name, getattr(home, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
