"""The parts of the report: rows and tables, comparisons, examples and errors, the page."""
