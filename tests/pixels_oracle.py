"""The plain way to measure what replaced pixels do to an answer: every row of a result against the model run again as a whole.

How the pixels get into the model, a test file says: through the processor for images, frame by frame for videos.
"""

import effect_oracle
import eye_oracle
import numpy as np
import torch

from mask_impact.results.patches import HIDDEN, OWN, TOTAL

NATS = 1e-4


class PixelsOracle:
    """For one result. inputs: the model's, with nothing replaced."""

    def __init__(self, loaded, found, inputs):
        self.model, self.found, self.inputs = loaded.model, found, inputs
        self.produced = found.tokens.ids[found.n_prompt :].tolist()
        self.before = eye_oracle.logits(self.model, inputs, self.produced)

    def changed(self, region, fill):
        """The model's inputs with a region replaced."""
        raise NotImplementedError

    def expected(self, region, fill, route):
        """Logits [T, vocabulary] with the region replaced, in total or by one way."""
        model = self.model
        if route == TOTAL:
            return eye_oracle.logits(model, self.changed(region, fill), self.produced)
        if route == HIDDEN:
            n, layers = self.found.n_prompt + len(self.produced) - 1, model.config.text_config.num_hidden_layers
            edges = effect_oracle.Edges(tuple(range(layers)), tuple(range(n)), region.positions)
            duplicate = effect_oracle.computing_copy(model)
            return effect_oracle.all_logits(duplicate, self.inputs, self.produced[:-1], edges)[-len(self.produced) :]
        own, new = (eye_oracle.tower_parts(model, one) for one in (self.inputs, self.changed(region, fill)))
        cells = np.flatnonzero(self.found.tokens.image >= 0)
        takes = torch.from_numpy(np.isin(cells, region.positions)) == (route == OWN)
        parts = [torch.where(takes[:, None], other, one) for one, other in zip(own, new, strict=True)]
        return eye_oracle.logits(model, self.inputs, self.produced, [eye_oracle.giving(model, parts)])

    def assert_agrees(self, routes=None):
        """Every row of the result, or those of some routes."""
        n_checked = 0
        for target in self.found.targets:
            for row, place in enumerate(target.place.tolist()):
                if routes is not None and target.route[row] not in routes:
                    continue
                region = self.found.regions[place]
                after = self.expected(region, target.fill[row], target.route[row])
                change, kl, top1 = eye_oracle.effect(self.before, after, self.produced, target.steps)
                where = (region.name, target.fill[row], target.route[row])
                assert abs(target.logprob_change[row] - change) < NATS, where
                assert abs(target.kl_divergence[row] - kl) < NATS, where
                assert target.differs[row] == (top1 is not None), where
                assert top1 in (None, target.top1[row]), where
                n_checked += 1
            assert abs(target.logprob_change).max() > 0.05
        assert n_checked
