"""The report of one compile: a page, JSON, Markdown, and the difference of prompts."""

from cuesmith.teleprompters.runtime.run_report.reporting import RunReport

__all__ = ["RunReport"]
