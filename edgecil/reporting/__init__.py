"""What methods keep between increments and hold while they train: tables and a plot, in bytes."""

from edgecil.reporting.comparison import PublishedTable, compare
from edgecil.reporting.workspaces import MemoryReport, report

__all__ = ["MemoryReport", "PublishedTable", "compare", "report"]
