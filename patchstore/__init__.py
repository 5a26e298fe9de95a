"""The outside of patchstore: the command, questions, and the page that shows answers."""
