"""One module for each question: impact, knockout, without, exactness; and the one definition of every setting.

In: a model, a prompt, settings. Out: records. An Observer is told how a run gets on. It must not know files, text or commands.
`settings` works without torch.
"""
