"""What is told of a run while it goes on."""


class Observer:
    """Is told how a run gets on, and does nothing about it; see `commands.narration` for one that draws a bar."""

    def begin(self, n_tokens: int, n_layers: int, n_steps: int) -> None:
        """A run over a prompt of n_tokens starts (again, after running out of memory)."""

    def layer_done(self, step: int, layer: int) -> None:
        """A layer of a step is measured."""

    def effects_begin(self, step: int, n_variants: int) -> None:
        """The effects of n_variants (layer, token) are measured at a step."""

    def effects_done(self, n_variants: int) -> None:
        """So many more of them are measured."""

    def answers_begin(self, n_answers: int) -> None:
        """So many answers are generated."""

    def answer_done(self) -> None:
        """One more of them is there."""

    def explaining(self, n_targets: int, budget: int) -> None:
        """What n_targets used is looked for, with at most `budget` forward passes of the prompt each to measure."""

    def forwards_done(self, forwards: float) -> None:
        """So many more forward passes are done."""

    def changing(self, what: str, n_most: int) -> None:
        """The model is run again with at most n_most changes of what it sees. what: they are, in a word or two."""

    def changed(self, n: int) -> None:
        """So many more of these runs are done."""

    def all_changed(self) -> None:
        """All of them are."""

    def explained(self) -> None:
        """All targets are."""

    def note(self, text: str) -> None:
        """Something the user should know, in one line."""
