"""temporary"""

import numpy as np


def content_positions(tokens, n_prompt):
    found = np.array([k != "special" for k in tokens.kinds[:n_prompt]])
    for i in range(n_prompt):
        if tokens.texts[i] == "<|im_start|>":
            found[i + 1 : i + 3] = False
        if tokens.texts[i] == "<|im_end|>":
            found[i + 1 : i + 2] = False
    return found if found.any() else ~found
