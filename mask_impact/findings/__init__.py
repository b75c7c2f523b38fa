"""What results say: shares, rankings, agreement of measures, comparison of results, and the test of chance.

In: records. Out: numbers and rankings. It must not know files, text, pages or models.
"""
