"""A run's numbers as data, and as files.

In: what an analysis measured, or files. Out: records (numpy), tables (pyarrow), files; and records from files again, this
program's own or bare tables of others. It must not know models, how anything was measured, or what the numbers say.
"""
