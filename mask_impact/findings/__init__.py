"""What results say: shares, rankings, agreement of measures, comparison of results, statistics over prompts.

In: records. Out: numbers and rankings. It must not know files, text, pages or models.
"""
