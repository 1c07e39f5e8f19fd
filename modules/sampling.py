"""The number of the draw that an in-process model is asked for.

Distinct draws of one request differ only in their number. Providers never see it: dspy keeps `rollout_id`
out of the request. A model that runs in this process (the embedded one, the simulated optimizer) reads it
here, so that several draws differ and each is reproducible at any concurrency.
"""

from contextvars import ContextVar

draw: ContextVar[int | None] = ContextVar("cuesmith_draw", default=None)
"""The draw's number, 0-based, within one `ask`; None outside of one."""
