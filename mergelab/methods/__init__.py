"""RULE: what happens to the changes. A published method is one file here and one line of the table in `registry`."""
