"""Every request that Cuesmith makes to a language model, as a typed, documented `dspy.Signature`."""

from cuesmith.signatures.diagnosing import CheckRule, Followed, IdentifyCondition
from cuesmith.signatures.instructions import (
    STYLES,
    Style,
    SummarizeData,
    VaryInstructions,
    WriteInstructions,
    naming_answers,
)
from cuesmith.signatures.procedure import (
    Deviation,
    LocateDeviation,
    Move,
    ReviseStep,
    StepWork,
    WorkExample,
    WriteSteps,
)
from cuesmith.signatures.refinement import (
    CriticizeInstruction,
    EditInstruction,
    ImproveInstruction,
    MergeInstructions,
    ProposeInstruction,
    ReflectOnFailures,
    ReflectOnSuccesses,
    RewriteInstruction,
    SummarizeReasons,
)
from cuesmith.signatures.rendering import canonical_steps, canonical_task, parse_steps, render_steps, undemonstrated

__all__ = [
    "STYLES",
    "CheckRule",
    "CriticizeInstruction",
    "Deviation",
    "EditInstruction",
    "Followed",
    "IdentifyCondition",
    "ImproveInstruction",
    "LocateDeviation",
    "MergeInstructions",
    "Move",
    "ProposeInstruction",
    "ReflectOnFailures",
    "ReflectOnSuccesses",
    "ReviseStep",
    "RewriteInstruction",
    "StepWork",
    "Style",
    "SummarizeData",
    "SummarizeReasons",
    "VaryInstructions",
    "WorkExample",
    "WriteInstructions",
    "WriteSteps",
    "canonical_steps",
    "canonical_task",
    "naming_answers",
    "parse_steps",
    "render_steps",
    "undemonstrated",
]
