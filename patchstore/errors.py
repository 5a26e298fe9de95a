"""What can go wrong on the outside.

PatchstoreError
└── QuestionError      a question that makes no sense: which part, its value, what was expected
"""


class PatchstoreError(Exception):
    """Base of every error of this room; its text is one line for a person."""


class QuestionError(PatchstoreError):
    """The question cannot be understood."""
