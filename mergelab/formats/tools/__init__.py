"""The tools that read LoRA files: what each has a place for, and how a file for it is written."""

from mergelab.formats.tools.fitting import Fitted, fitted
from mergelab.formats.tools.others import missed, other_tools
from mergelab.formats.tools.table import PACKED, TOOLS, check_tool
from mergelab.formats.tools.tool import Lack, Tool, Way

__all__ = ["PACKED", "TOOLS", "Fitted", "Lack", "Tool", "Way", "check_tool", "fitted", "missed", "other_tools"]
