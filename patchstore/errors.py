"""What can go wrong on the outside.

PatchstoreError
└── QuestionError      a question that makes no sense: which part, its value, what was expected
"""


class PatchstoreError(Exception):
    """Base of every error of this room; its text is one line for a person."""


class QuestionError(PatchstoreError):
    """The question cannot be understood.

    Attributes:
        rule: which rule it breaks, a word for programs such as `region_outside`.
    """

    def __init__(self, message: str, rule: str = "question_invalid") -> None:
        super().__init__(message)
        self.rule = rule
