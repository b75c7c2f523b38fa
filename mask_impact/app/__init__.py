"""A local page on one loaded model: ask, hide words and cells by clicks and ask again, open stored results.

`desk` does the work and keeps the model to one owner, `pieces` makes the HTML, `page` lays it out with gradio and serves it.
In: a loaded model, questions and pictures that come from a browser. Out: evidence cards, answers side by side, errors in one
line. It must not know the command line, and only `page` knows gradio.
"""
