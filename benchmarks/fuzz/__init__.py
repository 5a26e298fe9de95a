"""The service against hostile requests: what schemathesis thinks up, and broken uploads.

    python -m benchmarks.fuzz

Asked for: `schemathesis run` with all checks and at least 2,000 cases finds no failure; 10,000
random and corrupt uploads are refused with a 4xx unless a decoder makes a picture of them, the log
holds no traceback, and memory does not grow. Any difference is exit code 1.
"""

from .schema import SchemaRun, run_schemathesis
from .uploads import UploadRun, corrupt_uploads, send_uploads

__all__ = ["SchemaRun", "UploadRun", "corrupt_uploads", "run_schemathesis", "send_uploads"]
