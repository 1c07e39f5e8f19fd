"""The progress display, under the name that programs have imported it by."""

from cuesmith.teleprompters.runtime.progress_bar import Progress as Progress
