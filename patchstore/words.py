"""Words that several commands share and that cost nothing to import."""

DEFAULT_SPEC = "default"
