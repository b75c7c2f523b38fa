"""The command line: one module for each command, with its arguments, its help and its run.

In: words that were typed. Out: text on stdout, narration on stderr, files, an exit code. `options` makes flags from the settings,
`single` and `study` load models only when all that can be refused without one has been. Knows everything below; nothing knows it.
Importing a command imports neither torch nor transformers.
"""
