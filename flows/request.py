"""What a run of a flow is asked to do. Prefect's UI makes a form of it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# `auto`, or the name of a way as `extractor.device.Way` has it: the one that a run's summary tells.
Precision = Literal[
    "auto",
    "float32",
    "bf16",
    "fp16",
    "float32 by onnxruntime",
    "float32 by mnn",
    "bf16 by openvino",
    "float32 by torch.compile",
    "bf16 by torch.compile",
    "fp16 by torch.compile",
]


class IngestRequest(BaseModel):
    """Bring the vectors of one folder up to date."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(
        min_length=1,
        max_length=4096,
        description="Folder with images, its absolute path on the machine of the worker; or the "
        "URL of a place in an object store.",
    )
    spec: str = Field(min_length=1, description="Name of a spec in the store.")
    precision: Precision = Field(
        "auto",
        description="What the forward pass computes in; "
        "auto checks and takes the fastest that agrees with float32.",
    )
    build_index: bool = Field(
        True,
        description="Build the index at the end where it is due and missing. Off: the next run "
        "does, for with an index in place vectors are written far more slowly.",
    )
    allow_empty: bool = Field(
        False,
        description="Whether a folder that held images and holds none at all was emptied on "
        "purpose, rather than on a disk that is not mounted.",
    )
