"""What can go wrong in the store.

StoreError
├── ConfigurationError      the database, its extension or a setting: a person must act
│   └── NotPermitted        the role in the database may not do this
├── SchemaError             the schema is missing or of another version: `patchstore db upgrade`
├── SpecConflict            the name is taken: by another recipe, a spec or an alias
├── InUse                   a spec or a source that somebody needs now cannot be removed
├── SpecIncomplete          a spec that lacks images cannot take an alias over
├── NotFound                no such spec, image, patch or source
│   └── SpecBuilding        nothing of the spec is searchable yet: ask again in a while
├── InvalidQuestion         a search that cannot be answered as asked
├── CountMismatch           stored rows differ from computed ones: the transaction was rolled back
└── TransientStoreError     the same transaction may well succeed in a moment
    └── StoreTimeout        it was stopped because it took too long

`db.engine.store_errors` is the one place where driver errors become these.
"""


class StoreError(Exception):
    """Base of every error of this room; its text is one line for a person."""


class ConfigurationError(StoreError):
    """The database cannot be used as it is set up."""


class NotPermitted(ConfigurationError):
    """The role in the database may not do this."""


class SchemaError(StoreError):
    """The schema is missing or of another version."""


class SpecConflict(StoreError):
    """The name is taken: a spec with another recipe, a spec, or an alias has it."""


class InUse(StoreError):
    """It cannot be removed: an alias stands for the spec, or a run computes it or the source."""


class SpecIncomplete(StoreError):
    """Images that searches by the alias would show are not computed under the spec yet."""


class NotFound(StoreError):
    """The named spec, image, patch or source does not exist.

    Attributes:
        rule: what was looked for, a word for programs such as `spec_unknown`.
    """

    def __init__(self, message: str, rule: str = "unknown") -> None:
        super().__init__(message)
        self.rule = rule


class SpecBuilding(NotFound):
    """The spec's first images are still being computed."""


class InvalidQuestion(StoreError):
    """The search cannot be answered as asked.

    Attributes:
        rule: which rule it breaks, a word for programs such as `k_range`.
    """

    def __init__(self, message: str, rule: str = "question_invalid") -> None:
        super().__init__(message)
        self.rule = rule


class CountMismatch(StoreError):
    """The number of stored rows is not the number of computed ones."""


class TransientStoreError(StoreError):
    """A lost connection, a deadlock, a timeout: try the whole transaction again."""


class StoreTimeout(TransientStoreError):
    """The database stopped a statement that took too long."""
