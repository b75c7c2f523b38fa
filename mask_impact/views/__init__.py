"""What people see: summaries as text and JSON, tables, pictures, the page of a result, the page of a comparison.

In: records and findings. Out: text, PNG, HTML. Texts of prompts and tokens are escaped here, whatever shows them.
It must not know models, and no command line.
"""
