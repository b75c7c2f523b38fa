"""From what was typed to a model's inputs: marks for images, images, encoding, and groups of tokens by name.

In: text, pictures, ChatML, YAML files of groups and flows. Out: inputs (torch), the token table, positions. It must not know what
is measured or how. `marks`, `groups` and the YAML modules work without torch.
"""
