"""What runs and when: sources, flows, tasks, artifacts. The only room that knows Prefect.

Importing this package imports no Prefect: `flows.environment` must speak first.
"""
