"""Many prompts: configuration files and datasets, shared forwards, resuming, workers.

In: a YAML file or a dataset, a model. Out: results as files, and a tally of what became of each prompt. It must not know how
anything is shown; who wants to show progress passes an observer.
"""
