"""A package, so that `tests.…` means these tests: verl's wheel installs a top-level package of the same name."""
