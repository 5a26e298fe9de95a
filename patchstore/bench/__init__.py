"""`patchstore bench`: this machine measured, way beside way, and what benchmarks share."""
