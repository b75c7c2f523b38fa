"""Exact differences that ride through any decoder's own module code.

In: a model, and what hiding a key does to one layer's attention output. Out: what it does to the layer's update. A tensor
subclass carries the differences (`tensor`), with a rule for each operation; `engine` lets them on and off. It must not know
prompts, files or text.
"""
