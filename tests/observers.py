"""Observers that tests look at afterwards."""

from mask_impact.analyses.observer import Observer


class Counting(Observer):
    """How often the model ran again, and how often at most it was said to."""

    most = done = 0

    def changing(self, what, n_most):
        self.most = n_most

    def changed(self, n):
        self.done += n
