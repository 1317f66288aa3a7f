"""What `--report FILE.html` writes: one page that needs nothing else, made of a command's own result.

`measures` gathers what only the weights themselves tell (histograms, codes), `contents` puts a command's figures in the
order in which they are read, `heatmap` and `charts` place them, and `page` writes them.
"""

from llmq.report.contents import compare_contents, eval_contents, quantize_contents
from llmq.report.measures import Measures
from llmq.report.page import Contents, check_writable, render, write_page

__all__ = [
    "Contents",
    "Measures",
    "check_writable",
    "compare_contents",
    "eval_contents",
    "quantize_contents",
    "render",
    "write_page",
]
