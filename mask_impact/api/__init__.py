"""The Python functions and their results with what one does with them.

In: a model or its name, a prompt, settings as keywords (`functions`, `looking`). Out: plain records with
to_frame, save, plot and what a notebook shows (`results`). It must not know the command line. `results` works without torch.
"""
