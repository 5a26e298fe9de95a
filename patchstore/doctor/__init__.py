"""What a support engineer would ask, answered by small checks that change nothing.

A check is a function that yields findings. The rooms give the facts (`db.checkup`, `db.gauges`,
`flows.checkup`, `extractor`); what they mean is decided here.
"""

from .examine import examine
from .finding import Finding

__all__ = ["Finding", "examine"]
