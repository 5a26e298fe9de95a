"""Repeatable measurements against references. Each script tells in its docstring how to run it."""
